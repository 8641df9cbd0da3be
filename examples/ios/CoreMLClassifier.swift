// Not compiled or run: there is no Mac here.
//
// Drag the .mlpackage into the Xcode project, which compiles it to Name.mlmodelc.

import CoreML
import ImageIO
import UIKit
import Vision

/// Names the classes of photos with Core ML and Vision.
final class CoreMLClassifier {
    private static let crop = 256.0 / 288  // "crop" in the .json file beside the package
    private let model: VNCoreMLModel

    /// Loads a package by its name in the app, without the extension.
    init(name: String) throws {
        guard let url = Bundle.main.url(forResource: name, withExtension: "mlmodelc") else {
            throw CocoaError(.fileNoSuchFile)
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .all
        model = try VNCoreMLModel(for: MLModel(contentsOf: url, configuration: configuration))
    }

    /// Returns names and probabilities of the most likely classes, the best first.
    func classify(_ photo: UIImage) throws -> [(name: String, probability: Float)] {
        guard let image = photo.cgImage else { throw CocoaError(.featureUnsupported) }
        let request = VNCoreMLRequest(model: model)
        // Training showed the network the center of photos, without stretching them.
        request.imageCropAndScaleOption = .centerCrop
        let margin = (1 - Self.crop) / 2
        request.regionOfInterest = CGRect(
            x: margin, y: margin, width: Self.crop, height: Self.crop)
        let orientation = CGImagePropertyOrientation(photo.imageOrientation)
        try VNImageRequestHandler(cgImage: image, orientation: orientation).perform([request])
        let found = request.results as? [VNClassificationObservation] ?? []
        return found.prefix(5).map { ($0.identifier, $0.confidence) }
    }
}

extension CGImagePropertyOrientation {
    /// The two types count the same orientations differently.
    init(_ orientation: UIImage.Orientation) {
        switch orientation {
        case .up: self = .up
        case .upMirrored: self = .upMirrored
        case .down: self = .down
        case .downMirrored: self = .downMirrored
        case .left: self = .left
        case .leftMirrored: self = .leftMirrored
        case .right: self = .right
        case .rightMirrored: self = .rightMirrored
        @unknown default: self = .up
        }
    }
}
