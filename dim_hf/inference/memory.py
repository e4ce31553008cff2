"""What a shortage of memory looks like, whichever library met it."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its GPU had too little memory; a CPU without memory is a plain RuntimeError to torch.

    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    True
    """
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error).lower() for w in words)
