import msgspec
from typing import Any
class Fingerprint(msgspec.Struct):
    parts: Any
    files: Any
def encode(x): return msgspec.msgpack.encode(x.parts)
def explain(view, blobs, name): return ["because"]
