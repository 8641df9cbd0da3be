// Not compiled with MediaPipe and not run: checked against the signatures in its source.
//
// build.gradle.kts: implementation("com.google.mediapipe:tasks-vision:1.1.0")
// The .tflite file goes to src/main/assets.

import android.content.Context
import android.graphics.Bitmap
import android.graphics.RectF
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.ImageProcessingOptions
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier.ImageClassifierOptions

private const val CROP = 256f / 288  // "crop" in the .json file beside the model

/** Names the classes of photos with MediaPipe, on the CPU. */
class Classifier(context: Context, asset: String) : AutoCloseable {
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(asset).build())
            .setMaxResults(5)
            .build()
    )

    /**
     * Returns names and probabilities of the most likely classes, the best first.
     *
     * The photo is upright and has the configuration ARGB_8888.
     */
    fun classify(photo: Bitmap): List<Pair<String, Float>> {
        val image = BitmapImageBuilder(photo).build()
        val options = ImageProcessingOptions.builder()
            .setRegionOfInterest(center(photo.width, photo.height))
            .build()
        val result = classifier.classify(image, options).classificationResult()
        return result.classifications()[0].categories().map { it.categoryName() to it.score() }
    }

    /**
     * Returns the square in the center of a photo, as fractions of its sides.
     *
     * MediaPipe stretches the whole photo to the square that the network takes. Training
     * showed it the center without stretching, so this crop is more accurate.
     */
    private fun center(width: Int, height: Int): RectF {
        val side = CROP * minOf(width, height)
        val x = side / width / 2
        val y = side / height / 2
        return RectF(0.5f - x, 0.5f - y, 0.5f + x, 0.5f + y)
    }

    override fun close() = classifier.close()
}
