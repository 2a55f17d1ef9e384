"""The state of torch in which this package computes, whatever its caller's is.

Notebooks switch gradients off, libraries change the default dtype, training loops use autocast:
each would change the numbers of a call, or make it fail.
"""

# pyright: reportPrivateUsage=false

import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils._contextlib import context_decorator

Function = TypeVar("Function", bound=Callable[..., Any])

PRECISIONS = (
    *(("generic", "all"), ("cuda", "all"), ("cuda", "matmul")),
    *(("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv")),
)
"""Where torch keeps how exactly float32 is multiplied; an unset one follows those before it."""

SMALLEST = 5e-324  # 0 where the processor takes denormal numbers for 0


class plain_torch:
    """Run a block, or as a decorator a function or generator, with torch as it is when imported.

    That is without autocast, outside inference mode, with float32 as the default dtype, the CPU as
    the default device, products of float32 in full precision, denormal numbers, and NumPy's own
    treatment of errors; also in functions that the caller gives. The caller's state comes back
    afterwards. `gradient` says whether gradients are recorded; None leaves that to the caller.

    The default dtype and the precision belong to the process: where the caller sets others, threads
    that compute at once disturb each other. Set float32 first, or let one thread compute at a time.
    """

    def __init__(self, *, gradient: bool | None = False) -> None:
        self._gradient = gradient
        self._leaving = ExitStack()

    def __call__(self, function: Function) -> Function:
        """Return the function, in this state at every call; a generator at every step."""
        again = context_decorator(lambda: plain_torch(gradient=self._gradient), function)
        return cast(Function, again)

    def __enter__(self) -> None:
        gradient = torch.is_grad_enabled() if self._gradient is None else self._gradient
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(gradient))
            if torch._C._is_any_autocast_enabled():
                for device in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if (dtype := torch.get_default_dtype()) is not torch.float32:
                stack.callback(torch.set_default_dtype, dtype)
                torch.set_default_dtype(torch.float32)
            if torch.get_default_device().type != "cpu":  # else not: it takes time at every call
                stack.enter_context(torch.device("cpu"))
            if not _multiplies_exactly():
                _multiply_exactly(stack)
            if SMALLEST * 1.0 == 0.0:
                stack.callback(torch.set_flush_denormal, True)
                torch.set_flush_denormal(False)
            stack.enter_context(
                np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")
            )
            self._leaving = stack.pop_all()

    def __exit__(self, *error: Any) -> None:
        self._leaving.__exit__(*error)


@contextmanager
def seeded(*numbers: int) -> Generator[None]:
    """Seed torch's own random numbers in a block; afterwards they go on as if it had not run."""
    on_cuda = torch.cuda.is_initialized()  # else a seed for it would wait until it is
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_cuda else ()):
        seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
        (torch.manual_seed if on_cuda else torch.default_generator.manual_seed)(seed)
        yield


@contextmanager
def users_code() -> Generator[None]:
    """Run a user's code inside a `plain_torch` block, and undo its changes of torch's state."""
    n_threads = torch.get_num_threads()
    with (
        torch.set_grad_enabled(torch.is_grad_enabled()),
        torch.autocast("cpu", enabled=False),
        np.errstate(),
    ):
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)
            torch.set_default_dtype(torch.float32)
            if not _multiplies_exactly():
                _multiply_exactly(ExitStack())


def _multiplies_exactly() -> bool:
    return all(_precision(*place) in ("none", "ieee") for place in PRECISIONS)


def _multiply_exactly(stack: ExitStack) -> None:
    """Have float32 multiplied exactly; the stack restores what was set."""
    for place in PRECISIONS:
        stack.callback(_set_precision, *place, _precision(*place))
        _set_precision(*place, "none")
    # Torch has an older setting, too, which can be read only where these are unset.
    older = torch.get_float32_matmul_precision()
    if older != "highest":
        stack.callback(torch.set_float32_matmul_precision, older)
        torch.set_float32_matmul_precision("highest")


def _precision(backend: str, operation: str) -> str:
    return torch._C._get_fp32_precision_getter(backend, operation)


def _set_precision(backend: str, operation: str, value: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32 on Intel's GPUs, when it is put back
        torch._C._set_fp32_precision_setter(backend, operation, value)


def in_single(values: torch.Tensor) -> torch.Tensor:
    """Return numbers in single precision at least: sums and norms in half lose digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
