"""What bfloat16 logits do to a small KL, and to its gradient, beside float64 from the same bfloat16 inputs.

    python -m benchmarks.kernels.logit_precision [--rows 64 --hidden 576 --vocab 49152 --spread 3]

prints a JSON line for each distance of student and teacher: their KL in nats a row in float64, the ratio of the KL that
``linear_kl`` gives to it, and the relative error of the gradient, with logits in bfloat16 and in float32.
"""

from __future__ import annotations

import argparse
import json

import torch

import lcc_kernels as lk

DISTANCES = (0.002, 0.004, 0.008, 0.016, 0.032)


def measure(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor, **options: object
) -> tuple[float, torch.Tensor]:
    """The mean KL of hidden states (rows, H) behind ``weight`` (V, H), and its gradient (rows, H) in float64."""
    student = student.clone().requires_grad_()
    loss = lk.linear_kl(student, teacher, weight, **options)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.item(), gradient.double()


def row(teacher: torch.Tensor, noise: torch.Tensor, weight: torch.Tensor, distance: float) -> dict[str, float]:
    """The figures of a student that is ``distance`` times ``noise`` away from the teacher."""
    head = [x.bfloat16() for x in (teacher + distance * noise, teacher, weight)]
    exact, direction = measure(*(x.double() for x in head))
    figures = {"distance": distance, "kl": exact}
    for name, logit_dtype in (("bfloat16", None), ("float32", torch.float32)):
        loss, gradient = measure(*head, logit_dtype=logit_dtype)
        figures[f"{name}_kl_ratio"] = loss / exact
        figures[f"{name}_gradient_error"] = ((gradient - direction).norm() / direction.norm()).item()
    return figures


def main() -> None:
    """Print the figures of all distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 64), ("hidden", 576), ("vocab", 49152)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of the logits")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    sizes = arguments.rows, arguments.rows, arguments.vocab
    teacher, noise, weight = (torch.randn(size, arguments.hidden, generator=generator) for size in sizes)
    weight *= arguments.spread * arguments.hidden**-0.5
    for distance in DISTANCES:
        print(json.dumps({k: float(f"{v:.4g}") for k, v in row(teacher, noise, weight, distance).items()}), flush=True)


if __name__ == "__main__":
    main()
