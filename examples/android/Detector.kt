// Not compiled with MediaPipe and not run: checked against the signatures in its source.
//
// build.gradle.kts: implementation("com.google.mediapipe:tasks-vision:1.1.0")
// The .tflite file goes to src/main/assets.

import android.content.Context
import android.graphics.Bitmap
import android.graphics.RectF
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.objectdetector.ObjectDetector
import com.google.mediapipe.tasks.vision.objectdetector.ObjectDetector.ObjectDetectorOptions

/** An object on a photo; the box is in pixels. */
class FoundObject(val name: String, val score: Float, val box: RectF)

/** Finds objects on photos with MediaPipe, on the CPU. */
class Detector(context: Context, asset: String) : AutoCloseable {
    private val detector = ObjectDetector.createFromOptions(
        context,
        ObjectDetectorOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(asset).build())
            .setScoreThreshold(0.3f)
            .build()
    )

    /**
     * Finds the objects on a photo.
     *
     * The photo is upright and has the configuration ARGB_8888. Detectors see all of it,
     * stretched, as in training.
     */
    fun detect(photo: Bitmap): List<FoundObject> {
        val detections = detector.detect(BitmapImageBuilder(photo).build()).detections()
        return detections.flatMap { detection ->
            // Objects of several classes in the same box are one detection.
            detection.categories().map {
                FoundObject(it.categoryName(), it.score(), detection.boundingBox())
            }
        }
    }

    override fun close() = detector.close()
}
