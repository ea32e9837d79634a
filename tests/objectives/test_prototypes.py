"""Losses over prototypes are the naive ones; they share one head; nothing that teaches has a gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maskvlm_jax.objectives.agreement import SECOND
from maskvlm_jax.objectives.reduce import loss_of
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.settings import rules
from maskvlm_jax.training import build
from maskvlm_jax.training.train_step import split_model
from tests.conftest import toy_config
from tests.reference import numpy_prototypes as oracle
from tests.reference import toy
from tests.training.steps import host_batches, mesh_of, one_device

PROTOTYPES = 7
HEAD = {"count": PROTOTYPES, "hidden": 12, "bottleneck": 5}
OPTIONS = {"head": HEAD, "student_temperature": 0.1, "ramp": (0.0, 0.5), "centre_decay": 0.9, "weight": 1.0}
AGREEMENT = {"name": "agreement", "teacher_temperature": (0.05, 0.05), **OPTIONS}
MASKED = {"name": "masked_prototype", "teacher_temperature": (0.04, 0.08), **OPTIONS}
BATCH = {**toy.batch(), SECOND: toy.batch(seed=1)["image"]}
KEPT = {
    label: {"centre": jnp.asarray(0.2 * np.random.default_rng(number).normal(size=PROTOTYPES), jnp.float32)}
    for number, label in enumerate(("agreement", "masked_prototype"))
}
PROGRESS = 0.25
KEY = jax.random.key(0)


def learner_of(between="crops", prediction="fused", target="fused"):
    agreement, masked = AGREEMENT | {"between": between}, MASKED | {"prediction": prediction, "target": target}
    return toy.learner(depth=1, only={"agreement": agreement, "masked_prototype": masked})


def other(learner):
    """A teacher: the same model with other parameters."""
    graphdef, params = split_model(learner)
    rng = np.random.default_rng(5)
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    return nnx.merge(graphdef, moved)


@pytest.fixture(scope="module")
def learner():
    return learner_of()


@pytest.fixture(scope="module")
def teacher(learner):
    return other(learner)


def context(learner, teacher, batch=BATCH):
    return learner._context_of_step(batch, KEY, teacher=teacher, kept=KEPT, progress=PROGRESS)


def weights_of(head):
    layers = [(np.asarray(one.kernel[...]), np.asarray(one.bias[...])) for one in (head.first, head.second, head.third)]
    return layers, np.asarray(head.kernel[...])


def by_hand(label, learner, teacher, pairs):
    """The loss, both entropies and the mean of the teacher's cosines, of pairs (student's vector, teacher's)."""
    first, last = learner.objectives[label].teacher_temperature
    temperature = oracle.temperature(first, last, 0.0, 0.5, PROGRESS)
    own, its = weights_of(learner.objectives[label].head), weights_of(teacher.objectives[label].head)
    raw = [oracle.cosines(x, *its) for _, x in pairs]
    targets = [oracle.teacher_shares(x, KEPT[label]["centre"], temperature) for x in raw]
    losses = [oracle.cross_entropy(q, oracle.cosines(x, *own), 0.1) for q, (x, _) in zip(targets, pairs, strict=True)]
    entropies = np.mean([oracle.entropy(q) for q in targets]), oracle.entropy(np.mean(targets, axis=0))
    return np.mean(losses), entropies, np.mean(raw, axis=0)


def outputs(learner, teacher, batch):
    """The loss, metrics and mean cosines of both objectives, and (student's, teacher's) vectors that they read."""
    ctx, told = context(learner, teacher, batch), {}
    for label, objective in learner.objectives.items():
        terms, metrics, seen = objective(ctx, KEY)
        told[label] = loss_of([terms])[0], metrics, seen["sum"] / seen["count"]
    own, its = learner.context(batch), teacher.context(batch)
    if learner.objectives["agreement"].between == "crops":
        (a, b), (a_teacher, b_teacher) = (
            [model.context(batch | {"image": image}).image("clean")[:, 0] for image in (batch["image"], batch[SECOND])]
            for model in (learner, teacher)
        )
        tokens = jnp.concatenate([b, a]), jnp.concatenate([a_teacher, b_teacher])
    else:
        tokens = own.image("masked")[:, 0], its.image("clean")[:, 0]
    masked = learner.objectives["masked_prototype"]
    student = own.fuse_image("masked", "clean") if masked.prediction == "fused" else own.image("masked")
    taught = its.fuse_image("clean", "clean") if masked.targets == "fused" else its.image("clean")
    return told, {"agreement": tokens, "masked_prototype": (student, taught)}


def compiled(learner, teacher):
    """`outputs` of a batch, one program, compiled in the least time."""
    (graphdef, params), (_, average) = split_model(learner), split_model(teacher)
    merge = partial(nnx.merge, graphdef)
    run = jax.jit(lambda params, average, batch: outputs(merge(params), merge(average), batch))
    program = run.lower(params, average, BATCH).compile({"xla_backend_optimization_level": 0})
    return lambda batch: program(params, average, batch)


@pytest.fixture(scope="module")
def run(learner, teacher):
    return compiled(learner, teacher)


def check(label, learner, teacher, run):
    told, vectors = run(BATCH)
    rows = [np.asarray(x) for x in vectors[label]]
    if label == "masked_prototype":
        places = [(b, n + 1) for b, n in np.argwhere(BATCH["image_masked"])]  # behind the class token
        assert len(places) == toy.MASKED_PATCHES * len(BATCH["tokens"])
        rows = [[x[place] for place in places] for x in rows]
    loss, entropies, mean = by_hand(label, learner, teacher, list(zip(*rows, strict=True)))
    found, metrics, seen = told[label]
    np.testing.assert_allclose(found, loss, rtol=1e-4)
    np.testing.assert_allclose([metrics["entropy"], metrics["entropy_of_mean"]], entropies, rtol=1e-4)
    np.testing.assert_allclose(seen, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("label", ["agreement", "masked_prototype"])
def test_agreement_of_two_crops_and_masked_prototypes_are_the_naive_ones(learner, teacher, run, label):
    check(label, learner, teacher, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("agreement", {"between": "masks"}),
        ("masked_prototype", {"target": "image"}),
        ("masked_prototype", {"prediction": "image", "target": "image"}),
    ],
)
def test_so_are_those_of_other_views_and_targets(label, options):
    learner = learner_of(**options)
    teacher = other(learner)
    check(label, learner, teacher, compiled(learner, teacher))


def test_another_caption_changes_the_target(run):
    shuffled = BATCH | {name: np.roll(BATCH[name], 1, axis=0) for name in ("tokens", "token_valid")}
    right, wrong = (run(batch)[1]["masked_prototype"][1] for batch in (BATCH, shuffled))
    assert np.abs(right - wrong).max() > 1e-3


def test_class_token_and_patches_have_one_head_and_so_has_the_moving_average(learner, teacher):
    for model in (learner, teacher):
        assert model.objectives["agreement"].head is model.objectives["masked_prototype"].head
    heads = [path for path in toy.by_path(split_model(learner)[1]) if "/head/" in path]
    assert len(heads) == 7 and all(path.startswith("common/head/") for path in heads)
    ctx = context(learner, teacher)
    assert ctx.teacher_head(learner.objectives["masked_prototype"]).head is teacher.objectives["agreement"].head


def test_the_uniform_distribution_is_as_far_from_every_target(learner, teacher):
    """H(q', q) = log J where q is uniform: here where all prototypes are one."""
    graphdef, params = split_model(learner)
    kernel = params["common"]["head"]["kernel"]
    params["common"]["head"]["kernel"] = jnp.broadcast_to(kernel[:, :1], kernel.shape)
    learner = nnx.merge(graphdef, params)
    ctx, vectors = context(learner, teacher), np.random.default_rng(0).normal(size=(2, 2, 3, toy.WIDTH))
    for objective in learner.objectives.values():
        terms, _, _ = objective.distances(ctx, *vectors.astype(np.float32), np.ones((2, 3), bool))
        np.testing.assert_allclose(terms.value, np.log(PROTOTYPES), rtol=1e-5)


def test_what_teaches_has_no_gradient_and_all_that_is_read_has_one(learner, teacher):
    (graphdef, params), (_, average) = split_model(learner), split_model(teacher)

    def loss(params, average, kept):
        model = nnx.merge(graphdef, params)
        return model(BATCH, KEY, teacher=nnx.merge(graphdef, average), kept=kept, progress=PROGRESS).loss

    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(params, average, KEPT)
    of_params, of_average, of_kept = program.compile({"xla_backend_optimization_level": 0})(params, average, KEPT)
    assert not any(np.any(x) for x in jax.tree.leaves((of_average, of_kept)))
    unread = ("vlm/image_projection", "vlm/text_projection", "vlm/temperature", "vlm/fusion/text_stream/")
    for path, gradient in toy.by_path(of_params).items():
        if not path.endswith("/key/bias"):  # which a softmax does not see
            assert np.any(gradient) != path.startswith(unread), path


def test_the_gradient_of_the_student_s_vectors_is_that_of_the_naive_loss(learner, teacher):
    ctx, rng = context(learner, teacher), np.random.default_rng(0)
    student, taught, way = rng.normal(size=(3, 2, 3, toy.WIDTH)).astype(np.float32)
    valid = np.ones((2, 3), bool)
    objective = learner.objectives["masked_prototype"]

    def loss(student, taught):
        terms, _, _ = objective.distances(ctx, student, taught, valid)
        return loss_of([terms])[0]

    def naive(step):
        rows = (x.reshape(-1, toy.WIDTH) for x in (student + step * way.astype(np.float64), taught))
        return by_hand("masked_prototype", learner, teacher, list(zip(*rows, strict=True)))[0]

    of_student, of_taught = jax.grad(loss, argnums=(0, 1))(student, taught)
    np.testing.assert_allclose(np.sum(of_student * way), (naive(1e-4) - naive(-1e-4)) / 2e-4, rtol=1e-3)
    assert not np.any(of_taught)


def test_the_centre_is_the_mean_of_the_first_batches_and_then_a_moving_one(learner):
    objective, rng = learner.objectives["agreement"], np.random.default_rng(0)
    kept, means = objective.first_kept(), []
    for _ in range(14):
        total, count = rng.normal(size=PROTOTYPES), 3.0
        kept = objective.next_kept(kept, {"sum": total, "count": count})
        means.append(total / count)
        np.testing.assert_allclose(kept["centre"], oracle.centres(means, 0.9), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(oracle.centres(means[:5], 0.9), np.mean(means[:5], axis=0))


def test_patches_that_do_not_count_are_in_no_mean(learner, teacher):
    ctx, rng = context(learner, teacher), np.random.default_rng(0)
    student, taught = rng.normal(size=(2, 2, 3, toy.WIDTH)).astype(np.float32)
    valid = np.array([[1, 1, 0], [1, 0, 0]], bool)
    terms, metrics, seen = learner.objectives["masked_prototype"].distances(ctx, student, taught, valid)
    pairs = [(student[p], taught[p]) for p in map(tuple, np.argwhere(valid))]
    loss, entropies, mean = by_hand("masked_prototype", learner, teacher, pairs)
    np.testing.assert_allclose(loss_of([terms])[0], loss, rtol=1e-4)
    np.testing.assert_allclose([metrics["entropy"], metrics["entropy_of_mean"]], entropies, rtol=1e-4)
    np.testing.assert_allclose(seen["sum"] / seen["count"], mean, rtol=1e-4, atol=1e-6)


def config_of(**values):
    return toy_config(
        "recipe=semmim",
        masking__image_cell=1,
        objectives__agreement__head__count=16,
        objectives__agreement__head__hidden=16,
        objectives__agreement__head__bottleneck=8,
        **values,
    )


def stepped(mesh, count=3, **values):
    """The state behind a few steps of the losses over prototypes alone, and the metrics of each."""
    alone = {f"objectives__{label}__weight": 0.0 for label in ("contrastive", "matching", "masked_text")}
    config = config_of(**alone | values)
    with jax.set_mesh(mesh):
        built, told = build.build(config, mesh), []
        batches = [build.sharding.put(batch, mesh) for batch in host_batches(config, count)]
        state = built.init()
        step = built.step.lower(state, batches[0]).compile({"xla_backend_optimization_level": 0})
        for batch in batches:
            state, metrics = step(state, batch)
            told.append({name: float(value) for name, value in metrics.items()})
        return jax.device_get(state), told


@pytest.fixture(scope="module")
def whole():
    return stepped(one_device())


@pytest.mark.slow
@pytest.mark.parametrize(("axes", "parts"), [((1, 1, 1), 2), ((2, 2, 2), 1)], ids=["two microbatches", "eight devices"])
def test_centres_and_losses_are_those_of_the_whole_batch(whole, axes, parts):
    mesh = one_device() if axes == (1, 1, 1) else mesh_of(*axes)
    (expected, expected_told), (state, told) = whole, stepped(mesh, optim__accumulate=parts)
    for label in ("agreement", "masked_prototype"):
        np.testing.assert_allclose(state.kept[label]["centre"], expected.kept[label]["centre"], rtol=1e-3, atol=1e-4)
        assert np.any(state.kept[label]["centre"]) and float(state.kept[label]["batches"]) == 3
    for ours, theirs in zip(told, expected_told, strict=True):
        for name in ("loss", "agreement/loss", "masked_prototype/loss"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3)


def test_a_flag_that_changes_the_head_of_one_changes_that_of_both():
    objectives = config_of().objectives
    assert objectives.masked_prototype.head.to_dict() == {"count": 16, "hidden": 16, "bottleneck": 8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim__ema_decay": 0.0}, r"set --config\.optim\.ema_decay"),
        ({"objectives__agreement__between": "views"}, r"between is 'views'; choose among crops, masks"),
        (
            {"objectives__agreement__between": "crops"},
            r"reads second_crop of each example; give data\.fields\.second_crop",
        ),
        ({"objectives__masked_prototype__target": "text"}, r"target is 'text'; choose among fused, image"),
        (
            {"objectives__agreement__head": {"count": 3}},
            r"agreement\.head and objectives\.masked_prototype\.head are one",
        ),
        ({"objectives__agreement__head__count": 0}, r"head\.count is 0; give at least 1"),
        ({"objectives__agreement__centre_decay": 1.0}, r"centre_decay is 1; give"),
        ({"objectives__agreement__student_temperature": 0.0}, r"student_temperature is 0; give more than 0"),
        ({"model__image__hidden": "none"}, "reads masked pictures"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        rules.check(toy_config("recipe=semmim", masking__image_cell=1, **values))
