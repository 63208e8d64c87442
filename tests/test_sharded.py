"""Centers that are split over ranks (gloo): losses, gradients and statistics are those of the whole head, and centers
bit-equal to its own."""

import pytest
import torch
from gloo_ranks import on_ranks

import heads
from config import load_config
from heads import build_head, build_standalone_head
from heads.head import AdaDistillHead, TrainedCentersHead
from heads.sharded import owned_classes
from utils.distributed import rank, world_size
from utils.errors import InputError

WORLDS = (1, 2, 3, 4)
CLASSES, SIZE, STEPS = 21, 32, 3  # 21 classes: slices of several sizes on 2 and 4 ranks
# Every slice of every number of ranks has a class; 3 and 7 are there several times, on every rank.
LABELS = torch.tensor([3, 7, 3, 7, 11, 3, 3, 7, 20, 7, 3, 0])
TRAINED = {"trained centers, AdaFace": [], "trained centers, with the maximum": ["s=100", "loss=CosFace"]}
SAMPLED = ["num_classes=91", "s=8"]
CASES = {
    "AdaFace with geometry": [],
    "with the maximum": ["s=100", "loss=ArcFace"],
    "norm statistics from the first batch": ["norm_statistics_start=first_batch"],
    "geometry that follows the progress": ["geom_margin=progress"],
    "geometry by confidence": ["geom_margin=confidence"],
    "norms of the teacher": ["norm_source=teacher"],
    "feature distillation, static alpha": ["feature_kd=l2", "adaptive_alpha=False", "loss=CosFace"],
}


def settings(*more: str) -> list[str]:
    return ["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", *more]


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher embeddings [12, 32] that resemble each other."""
    generator = torch.Generator().manual_seed(step)
    teacher = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(99))[LABELS]
    teacher = 5 * (teacher + 0.5 * torch.randn(12, SIZE, generator=generator))
    return 4 * (teacher / 5 + 0.7 * torch.randn(12, SIZE, generator=generator)), teacher


def run(head: AdaDistillHead, part: slice) -> list[dict[str, torch.Tensor]]:
    """Some steps of the head on a part of the global batch, the second of which is undone; then one in eval mode."""
    head.set_epoch(0.7)
    results = []
    for step in range(STEPS + 1):
        head.train(step < STEPS)
        student, teacher = (embeddings[part].clone().requires_grad_() for embeddings in global_batch(step))
        head.begin_step()
        output = head(student, teacher, LABELS[part])
        (3 * output.loss).backward()  # a factor, as of accumulated gradients
        head.end_step(torch.tensor(step == 1))
        assert teacher.grad is None
        results.append({"centers": head.own_centers()})
        results[-1] |= {f"stat {name}": value for name, value in output.stats.items()}
        results[-1] |= {f"norm {name}": value for name, value in head.softmax.margin.state_dict().items()}
        results[-1] |= {"loss": output.loss.detach(), "gradient": student.grad}
        results[-1] = {name: value.clone() for name, value in results[-1].items()}
    return results


def train(head: TrainedCentersHead, part: slice) -> list[dict[str, torch.Tensor]]:
    """Some steps of the head and of SGD for its centers, on a part of the global batch."""
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
    results = []
    for step in range(STEPS):
        student = global_batch(step)[0][part].clone().requires_grad_()
        optimizer.zero_grad()
        output = head(student, LABELS[part])
        (3 * output.loss).backward()
        optimizer.step()
        results.append({"loss": output.loss, "gradient": student.grad, "centers": head.centers, **output.stats})
        results[-1] = {name: value.detach().clone() for name, value in results[-1].items()}
    return results


def sample(part: slice) -> dict[str, torch.Tensor]:
    """One step of trained centers of which 40 % take part."""
    head = build_standalone_head(load_config(overrides=settings(*SAMPLED, "sample_rate=0.4")))
    chosen, choose = [], head._choose
    head._choose = lambda *arguments: chosen.append(choose(*arguments)) or chosen[-1]
    torch.manual_seed(5 + rank())
    student = global_batch(0)[0][part].clone().requires_grad_()
    output = head(student, 4 * LABELS[part])
    output.loss.backward()
    chosen = chosen[0] + head.owned.start
    return {"loss": output.loss.detach(), "gradient": student.grad, "centers": head.centers.grad, "chosen": chosen}


def steps_on_rank() -> dict:
    """The results of all cases on this rank."""
    share = 12 // world_size()
    part = slice(rank() * share, (rank() + 1) * share)
    results = {}
    for name, more in CASES.items():
        results[name] = run(build_head(load_config(overrides=settings(*more, "shard_centers=on"))), part)
    for name, more in TRAINED.items():
        head = build_standalone_head(load_config(overrides=settings(*more, "shard_centers=on")))
        results[name] = train(head, part)
    return {**results, "sampled": sample(part), "full centers": head.full_centers()}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, list[dict]]:
    """Number of ranks -> the results of each rank."""
    return on_ranks(steps_on_rank, WORLDS, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_head_split_over_ranks_computes_what_the_whole_one_does(results, world, case):
    whole = run(build_head(load_config(overrides=settings(*CASES[case]))), slice(0, 12))
    ranks = [result[case] for result in results[world]]
    for step, wanted in enumerate(whole):
        found = [result[step] for result in ranks]
        assert torch.equal(torch.cat([part["centers"] for part in found]), wanted["centers"]), step
        gradient = torch.cat([part["gradient"] for part in found]) / world
        tolerance = 3e-6 if case == "with the maximum" else 1e-6  # logits up to 100 have an error of 4e-6
        torch.testing.assert_close(gradient, wanted["gradient"], rtol=0, atol=tolerance * float(gradient.abs().max()))
        for name in wanted.keys() - {"centers", "gradient", "stat norm_std"}:
            value = torch.stack([part[name] for part in found])
            if name.startswith("norm"):
                assert all(torch.equal(one, value[0]) for one in value), name
            torch.testing.assert_close(value.mean(0), wanted[name], rtol=1e-6, atol=1e-6)
    assert not torch.equal(whole[0]["centers"], whole[2]["centers"])


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("world", WORLDS)
def test_trained_centers_that_are_split_over_ranks_are_those_of_the_whole_head(results, world, case):
    whole = train(build_standalone_head(load_config(overrides=settings(*TRAINED[case]))), slice(0, 12))
    ranks = [result[case] for result in results[world]]
    for step, wanted in enumerate(whole):
        found = [result[step] for result in ranks]
        assert_near(torch.cat([part["centers"] for part in found]), wanted["centers"], 3e-6)
        assert_near(torch.cat([part["gradient"] for part in found]) / world, wanted["gradient"], 1e-5)
        for name in ("loss", "margin", "norm_mean"):
            assert_near(torch.stack([part[name] for part in found]).mean(), wanted[name], 1e-6)
    assert (whole[0]["centers"] - whole[2]["centers"]).abs().max() > 0.1


def assert_near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """The largest difference is at most `tolerance` times the largest wanted value."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("world", WORLDS)
def test_sampled_centers_are_the_softmax_over_the_chosen_classes(results, world):
    ranks = [result["sampled"] for result in results[world]]
    chosen = torch.cat([part["chosen"] for part in ranks])
    assert chosen.tolist() == sorted(set(chosen.tolist())) and set((4 * LABELS).tolist()) <= set(chosen.tolist())
    assert 36 - world < len(chosen) < 60
    head = build_standalone_head(load_config(overrides=settings(*SAMPLED))).double()
    student = global_batch(0)[0].double().requires_grad_()
    loss, _ = head.softmax(
        student, head.centers[chosen], torch.searchsorted(chosen, 4 * LABELS), torch.zeros(12).double()
    )
    loss.backward()
    assert_near(torch.stack([part["loss"] for part in ranks]).mean().double(), loss.detach(), 1e-6)
    assert_near(torch.cat([part["gradient"] for part in ranks]).double() / world, student.grad, 1e-6)
    assert_near(torch.cat([part["centers"] for part in ranks]).double(), head.centers.grad, 1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_rank_0_gathers_all_centers(results, world):
    ranks = results[world]
    parts = [results[list(TRAINED)[-1]][-1]["centers"] for results in ranks]
    assert torch.equal(ranks[0]["full centers"], torch.cat(parts))
    assert all(results["full centers"] is None for results in ranks[1:])


def test_initial_centers_of_a_slice_are_those_of_a_single_draw(monkeypatch):
    cfg = load_config(overrides=["dataset=custom", "num_classes=103", "embedding_size=24"])
    expected = 0.01 * torch.randn(103, 24, generator=torch.Generator().manual_seed(cfg.seed))
    monkeypatch.setattr(heads, "ROWS_PER_DRAW", 16)
    for classes in (range(103), range(20, 61), range(90, 103)):
        centers = heads.initial_centers(cfg, classes, more_rows=1)
        assert torch.equal(centers[:-1], expected[classes.start : classes.stop]) and not centers[-1].any()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_class_has_one_owner_as_in_a_tensor_that_torch_splits(ranks):
    parts = [owned_classes(CLASSES, number, ranks) for number in range(ranks)]
    assert [list(part) for part in parts] == [part.tolist() for part in torch.arange(CLASSES).chunk(ranks)]


def test_more_ranks_than_classes_are_refused():
    with pytest.raises(InputError, match="9 classes cannot be split over 8 ranks"):
        owned_classes(9, 0, 8)
