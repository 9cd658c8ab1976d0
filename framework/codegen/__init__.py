"""From a tree of .proto files to typed Python: messages, servicers and clients.

    protos/shop/catalog/v1/catalog.proto  ->  src/shop/catalog/v1/catalog_pb2.py   messages, as protoc makes them
                                                                  catalog_pb2.pyi  their types
                                                                  catalog_rpc.py   CatalogServicer, CatalogClient

protoc compiles and describes the tree in one run, mypy-protobuf types the messages, and this package writes the rest
from the descriptors. The output is a function of the input: nothing of the machine or the moment gets in.

Reading order: tree (what is on disk), compiler (running the tools), layout (which module is where, and how one imports
another), comments, messages (`_pb2`), services (`_rpc`).
"""

from framework.codegen.compiler import ProtoError
from framework.codegen.tree import Mistake, Result, Stale, describe, generate

__all__ = ["Mistake", "ProtoError", "Result", "Stale", "describe", "generate"]
