// Not compiled or run: there is no Mac here. Checked against the headers of MediaPipe.
//
// Podfile: pod 'MediaPipeTasksVision', '1.0.0'
// Drag the .tflite file into the Xcode project.

import MediaPipeTasksVision
import UIKit

/// Names the classes of photos with MediaPipe, on the CPU.
final class MediaPipeClassifier {
    private static let crop = 256.0 / 288  // "crop" in the .json file beside the model
    private let classifier: ImageClassifier

    /// Loads a file by its name in the app, without the extension.
    init(name: String) throws {
        guard let path = Bundle.main.path(forResource: name, ofType: "tflite") else {
            throw CocoaError(.fileNoSuchFile)
        }
        let options = ImageClassifierOptions()
        options.baseOptions.modelAssetPath = path
        options.maxResults = 5
        classifier = try ImageClassifier(options: options)
    }

    /// Returns names and probabilities of the most likely classes, the best first.
    func classify(_ photo: UIImage) throws -> [(name: String, probability: Float)] {
        guard let pixels = photo.cgImage else { throw CocoaError(.featureUnsupported) }
        let image = try MPImage(uiImage: photo, orientation: photo.imageOrientation)
        // MediaPipe stretches the whole photo to the square that the network takes.
        // Training showed it the center without stretching, so this crop is more accurate.
        // The crop comes before the rotation, so it is as wide as the stored pixels.
        let side = Self.crop * Double(min(pixels.width, pixels.height))
        let width = side / Double(pixels.width), height = side / Double(pixels.height)
        let center = CGRect(
            x: (1 - width) / 2, y: (1 - height) / 2, width: width, height: height)
        let result = try classifier.classify(image: image, regionOfInterest: center)
        let found = result.classificationResult.classifications.first?.categories ?? []
        return found.map { ($0.categoryName ?? String($0.index), $0.score) }
    }
}
