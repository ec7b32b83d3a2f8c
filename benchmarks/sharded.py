"""A head whose classes are spread over ranks, against the same head in one process.

    torchrun --standalone --nproc-per-node=2 benchmarks/sharded.py

Each rank has its own part of the classes and its own part of the batch, and the network is replicated
by DistributedDataParallel. Rank 0 prints the largest deviations from one process with everything.
It takes seconds.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # torchrun starts from this folder
from lib import losses
from lib.heads import many_classes

C, D, B = 1001, 16, 24


def main() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)  # the same weights and data in every rank
    network, whole = nn.Linear(8, D), nn.Linear(8, D)
    whole.load_state_dict(network.state_dict())
    head, whole_head = losses.ArcFace(C, D), losses.ArcFace(C, D)
    whole_head.load_state_dict(head.state_dict())
    images, y = torch.randn(B, 8), torch.randint(C, (B,))

    many_classes.shard(head, mesh)
    network = nn.parallel.DistributedDataParallel(network)
    own = network(images.chunk(mesh.size())[mesh.get_local_rank()])
    # every rank needs all embeddings; Partial adds up their gradients, of which DistributedDataParallel takes the mean
    x = DTensor.from_local(own, mesh, [Shard(0)]).full_tensor(grad_placements=[Partial()])
    loss = many_classes.cross_entropy(head, x, y, block=100)
    loss.backward()

    expected = F.cross_entropy(whole_head(whole(images), y), y)
    expected.backward()
    pairs = {
        "loss": (loss, expected),
        "gradient of W": (head.W.grad.full_tensor(), whole_head.W.grad),
        "gradient of the network": (network.module.weight.grad, whole.weight.grad),
    }
    for name, (ours, theirs) in pairs.items():
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if dist.get_rank() == 0:
            print(f"{name}: relative deviation {error:.1e}")
    if dist.get_rank() == 0:
        print(f"rank 0 of {mesh.size()} holds {len(head.W.to_local())} of {C} classes")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
