// Not compiled with LiteRT and not run: checked against the signatures in its source.
//
// build.gradle.kts:
//     implementation("com.google.ai.edge.litert:litert:2.3.0")
//     implementation("com.google.ai.edge.litert:litert-gpu:2.3.0")  // for Accelerator.GPU
// minSdk 24. Takes Labels.kt too.

import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import java.io.File

private const val CROP = 256.0 / 288  // "crop" in the .json file beside the model

/**
 * Names the classes of photos with LiteRT, on the CPU or the GPU.
 *
 * For files that take floats: fp32, fp16, dynamic and int8-mixed. LiteRT's Kotlin API
 * names no unsigned bytes, which int8 files take; MediaPipe runs these.
 *
 * @param size the side of the image that the file takes, as in its name.
 */
class LiteRtClassifier(
    file: File,
    private val size: Int = 256,
    accelerator: Accelerator = Accelerator.CPU
) : AutoCloseable {
    private val labels = readLabels(file)
    private val model = CompiledModel.create(file.path, CompiledModel.Options(accelerator))
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    /** Returns names and probabilities of the most likely classes of an upright photo. */
    fun classify(photo: Bitmap): List<Pair<String, Float>> {
        inputs[0].writeFloat(toFloats(resizedCenter(photo)))
        model.run(inputs, outputs)
        val probabilities = outputs[0].readFloat()
        return labels.zip(probabilities.toList()).sortedByDescending { it.second }.take(5)
    }

    private fun resizedCenter(photo: Bitmap): Bitmap {
        val side = Math.round(CROP * minOf(photo.width, photo.height)).toInt()
        val left = (photo.width - side) / 2
        val top = (photo.height - side) / 2
        var center = Bitmap.createBitmap(photo, left, top, side, side)
        // One step would skip most pixels of a large photo. Halving averages all of them.
        while (center.width >= 2 * size) {
            val half = center.width / 2
            center = Bitmap.createScaledBitmap(center, half, half, true)
        }
        return Bitmap.createScaledBitmap(center, size, size, true)
    }

    /** Returns red, green and blue of each pixel in [0, 255]; the network scales them. */
    private fun toFloats(image: Bitmap): FloatArray {
        val pixels = IntArray(size * size)
        image.getPixels(pixels, 0, size, 0, 0, size, size)
        return FloatArray(3 * pixels.size) { index ->
            (pixels[index / 3] shr (16 - 8 * (index % 3)) and 255).toFloat()
        }
    }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        model.close()
    }
}
