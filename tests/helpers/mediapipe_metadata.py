"""Prints the metadata of a file as JSON, read with MediaPipe's generated schema.

    python mediapipe_metadata.py MODEL

Started with the Python that has MediaPipe. Fields without a value are left out.
"""

import json
import sys
from pathlib import Path

from mediapipe.tasks.metadata import image_segmenter_metadata_schema_py_generated as seg
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
from mediapipe.tasks.metadata import schema_py_generated as tflite


def as_json(value):  # noqa: ANN001, ANN201 - any object of the schema
    """Converts objects of the schema to dictionaries."""
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list):
        return [as_json(x) for x in value]
    if hasattr(value, "__dict__"):
        found = {name: as_json(x) for name, x in vars(value).items()}
        return {name: x for name, x in found.items() if x not in (None, [])}
    return value


def main(path: str) -> None:
    """Prints the metadata of a file."""
    model = tflite.ModelT.InitFromPackedBuf(Path(path).read_bytes())
    (entry,) = (e for e in model.metadata if e.name == b"TFLITE_METADATA")
    content = bytes(model.buffers[entry.buffer].data)
    metadata = schema.ModelMetadataT.InitFromPackedBuf(content)
    found = as_json(metadata) | {"identifier": content[4:8].decode()}
    for custom in metadata.subgraphMetadata[0].customMetadata or []:
        options = seg.ImageSegmenterOptionsT.InitFromPackedBuf(bytes(custom.data))
        found[custom.name.decode()] = as_json(options)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
