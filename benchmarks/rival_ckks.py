"""NVFlare's side of `make bench-secagg`: CKKS by its own filter, with the parameters its provisioning writes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tenseal as ts
from measure import Job, Watch
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.lighter.impl.he import HEBuilder

VERSION = f"{version('nvflare')} (tenseal {version('tenseal')})"
_EXACT = 1e-4


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """TenSEAL warns on the process's own output, from C++, of every vector longer than one ciphertext."""
    with Path(os.devnull).open("w") as nowhere:
        kept = [os.dup(1), os.dup(2)]
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
        try:
            yield
        finally:
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)


def encrypt(vector: npt.NDArray[np.float32]) -> Iterator[Job]:
    """Encrypt and serialise one vector, as a client does before it sends it."""
    logging.getLogger("HEModelEncryptor").setLevel(logging.CRITICAL)
    builder = HEBuilder()  # poly_modulus_degree 8192, coeff_mod_bit_sizes [60, 40, 40], scale 2^40, symmetric
    builder.initialize(None, None)
    context = ts.context_from(builder.get_serialized_context(is_client=True))
    encryptor = HEModelEncryptor(weigh_by_local_iter=True)
    encryptor.tenseal_context, encryptor.encrypt_layers, encryptor.n_iter = context, [True], 1
    first: list[bytes] = []
    while True:

        def job(watch: Watch) -> None:
            parameters = {"weights": vector.copy()}
            with _silent(), watch:
                encrypted, _ = encryptor.encryption(parameters, FLContext())
                data = encrypted["weights"].serialize()  # as its decomposer does on the way out
            watch.size = len(data)
            if not first:  # a sum of two, opened, before anything is timed
                first.append(data)
                with _silent():
                    two = ts.ckks_vector_from(context, data) + ts.ckks_vector_from(context, data)
                    opened = np.array(two.decrypt())
                if np.abs(opened - 2 * vector).max() > _EXACT:
                    raise AssertionError("CKKS gives a wrong sum")

        yield job
