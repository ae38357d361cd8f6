"""CUDA graphs: how work is captured, and the evaluation pass as a graph."""
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from common.errors import reason
from common.data.augment import Preprocess

WARMUP_STEPS = 3  # before a capture: cuDNN picks its algorithms, the optimiser makes its state


def record(work: Callable[[], Any], stream: "torch.cuda.Stream", *generators: torch.Generator) -> "tuple[torch.cuda.CUDAGraph, Any]":
    """`work` captured on `stream` as a CUDA graph that draws anew from `generators` at each replay, and what `work` returned.

    Each capture has a stream of its own, since PyTorch frees a stream's cuBLAS workspaces with any graph captured on it, and
    minds the CUDA calls of its own thread alone, since a loader's thread may pin memory meanwhile.
    A capture that fails leaves its own stream current and, in torch where graphs do not register generators by themselves, every
    generator in the middle of a capture, so that the next random number raises: both are put right before the error goes on.
    """
    graph, home = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    if hasattr(graph, "register_generator_state"):
        with warnings.catch_warnings():  # newer releases register by themselves and call this deprecated
            warnings.simplefilter("ignore")
            for generator in generators:
                graph.register_generator_state(generator)
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = work()
    except RuntimeError:
        torch.cuda.set_stream(home)
        for generator in (*generators, torch.cuda.default_generators[home.device_index]):
            generator.graphsafe_set_state(torch.Generator(generator.device).graphsafe_get_state())
        raise
    return graph, result


Forward = Callable[[torch.Tensor], torch.Tensor]  # (N, 3, H, W) uint8 → logits (N, K) float32


def eager_forward(model: nn.Module, prepare: Preprocess, amp: torch.dtype | None) -> Forward:
    """The eval-time pass from uint8 images to logits, for a model in eval mode."""
    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, amp, enabled=amp is not None, cache_enabled=False):
            return model(prepare.clean(images)).float()
    return forward


def captured_forward(model: nn.Module, prepare: Preprocess, amp: torch.dtype | None, example: torch.Tensor) -> Forward:
    """`eager_forward` as a CUDA graph for batches as large as `example`; other sizes, and a capture that fails, run eagerly."""
    eager = eager_forward(model, prepare, amp)
    mode = [(module, module.training) for module in model.modules()]
    model.eval()
    images = example.clone()
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS):
                expected = eager(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph, logits = record(lambda: eager(images), stream)
        graph.replay()
        if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2 * max(1.0, float(expected.abs().max()))):
            raise RuntimeError("the captured logits differ from the eager ones")
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        print(f"eager evaluation: it cannot be captured as a CUDA graph ({reason(error)})")
        return eager
    finally:
        for module, training in mode:
            module.training = training

    def forward(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) != len(images):
            return eager(batch)
        images.copy_(batch)
        graph.replay()
        return logits.clone()
    return forward
