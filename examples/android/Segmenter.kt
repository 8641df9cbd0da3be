// Not compiled with MediaPipe and not run: checked against the signatures in its source.
//
// build.gradle.kts: implementation("com.google.mediapipe:tasks-vision:1.1.0")
// minSdk 24, for java.util.Optional. Takes Labels.kt too.

import android.content.Context
import android.graphics.Bitmap
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.framework.image.ByteBufferExtractor
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.imagesegmenter.ImageSegmenter
import com.google.mediapipe.tasks.vision.imagesegmenter.ImageSegmenter.ImageSegmenterOptions
import java.io.File
import java.io.FileInputStream
import java.nio.channels.FileChannel.MapMode.READ_ONLY

/** Finds the class of each pixel with MediaPipe, on the CPU. */
class Segmenter(context: Context, model: File) : AutoCloseable {
    /** Names of the classes. The segmenter's own `getLabels()` was reported to be empty. */
    val labels = readLabels(model)

    private val segmenter = FileInputStream(model).use { file ->
        val content = file.channel.map(READ_ONLY, 0, model.length())
        val options = ImageSegmenterOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetBuffer(content).build())
            .setOutputCategoryMask(true)
            .setOutputConfidenceMasks(false)
            .build()
        ImageSegmenter.createFromOptions(context, options)
    }

    /**
     * Returns the class of each pixel of a photo, row by row, counted from 0.
     *
     * The photo is upright and has the configuration ARGB_8888. Segmenters see all of it,
     * stretched, as in training.
     */
    fun segment(photo: Bitmap): IntArray {
        val result = segmenter.segment(BitmapImageBuilder(photo).build())
        val mask = ByteBufferExtractor.extract(result.categoryMask().get())
        return IntArray(photo.width * photo.height) { mask.get(it).toInt() and 255 }
    }

    override fun close() = segmenter.close()
}
