"""What stages read: documents from any source, by number, and packed batches of them."""

from distill.data.documents import open_documents
from distill.data.encode import Encoder
from distill.data.packing import Batch, Stream, Tokens, pack

__all__ = ["Batch", "Encoder", "Stream", "Tokens", "open_documents", "pack"]
