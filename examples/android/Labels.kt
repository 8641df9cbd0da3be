// Not run on Android; compiled and run with Java 17.

import java.io.File
import java.util.zip.ZipFile

/**
 * Reads the names of the classes from a .tflite file: a ZIP archive follows the network.
 *
 * ZipFile needs a file, so an asset has to be copied to `context.filesDir` first.
 */
fun readLabels(model: File): List<String> = ZipFile(model).use { archive ->
    archive.getInputStream(archive.getEntry("labels.txt")).bufferedReader().readLines()
}
