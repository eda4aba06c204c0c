"""transformers' own `generate` over the plan's physical cache: the tokens, the bytes, and what it refuses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from backends.transformers import executor
from backends.transformers.modeling_plan import PlanCache, from_pretrained
from backends.transformers.runner import ArtefactError
from planner import artefact
from planner.formats import grouped, head_bytes, rotated
from planner.space import Full, KvChoice, KvSite, Window
from tests.backends.oracle import Subject, choice, subject, tokens_of

HEADER = artefact.Header("transformers", "1", "0" * 64, "test")
NEW_TOKENS = 20


def mixed(site: KvSite) -> KvChoice:
    """Classes that differ in span, widths and protected tokens, one of them with a window that grows."""
    if site.layer == 0:
        return choice(Full(), rotated(8), rotated(4))
    return choice(Window(6, 0.125), rotated(3), rotated(4)) if site.kv_head % 2 else choice(Window(9), rotated(4))


def written(of: Subject, directory: Path) -> Path:
    artefact.write(directory, of.executor.emit(of.plan(mixed, lambda _: grouped(4)), of.spec), HEADER)
    return directory


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Subject:
    return subject(tiny_llama)


@pytest.fixture(scope="module")
def directory(llama: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(llama, tmp_path_factory.mktemp("generate") / "out")


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch padded on the left, as tokenizers give it to `generate`."""
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[1] * (longest - len(p)) + p for p in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mixtral"])
def test_generate_gives_the_tokens_of_the_runner(family: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    of = subject(tiny(family))
    model = from_pretrained(written(of, tmp_path / "out"))
    prompts = [tokens_of(40, seed=1), tokens_of(7, seed=2)]
    wanted = of.executor.open(of.plan(mixed, lambda _: grouped(4))).generate(prompts, NEW_TOKENS)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    found = model.generate(**padded(prompts), **options)[:, 40:]
    assert found.tolist() == wanted
    chunked = model.generate(**padded(prompts), **options, prefill_chunk_size=16)[:, 40:]
    assert chunked.tolist() == wanted


def test_its_cache_takes_the_bytes_of_the_plan(llama: Subject, directory: Path) -> None:
    cache = from_pretrained(directory).plan_cache(2, 60)
    predicted = sum(head_bytes(mixed(site), llama.spec.layers[site.layer], 60) for site in llama.spec.kv_sites)
    assert cache.bytes == 2 * predicted


def test_a_conversation_goes_on_in_its_cache(directory: Path) -> None:
    model = from_pretrained(directory)
    turns = torch.tensor([tokens_of(24, seed=3)])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    cache = model.plan_cache(1, 60)
    first = model.generate(turns, max_new_tokens=8, past_key_values=cache, **options)
    more = torch.cat([first, torch.tensor([tokens_of(6, seed=4)])], 1)
    second = model.generate(more, max_new_tokens=8, past_key_values=cache, **options)
    assert (
        second.tolist()
        == model.generate(more, max_new_tokens=8, past_key_values=model.plan_cache(1, 60), **options).tolist()
    )


def test_beams_carry_their_caches_along(directory: Path) -> None:
    """The score of the best beam is that of its tokens, read in one go."""
    model = from_pretrained(directory)
    prompt = torch.tensor([tokens_of(24, seed=5)])
    found = model.generate(
        prompt, max_new_tokens=6, num_beams=3, do_sample=False, eos_token_id=None, pad_token_id=1,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0, past_key_values=model.plan_cache(3, 40),
    )  # fmt: skip
    cache = model.plan_cache(1, 40)
    logits = model(found.sequences, past_key_values=cache).logits[0, 23:-1].log_softmax(-1)
    score = logits.gather(-1, found.sequences[0, 24:, None]).sum()
    assert float(found.sequences_scores[0]) == pytest.approx(float(score), abs=1e-3)


def test_without_a_cache_a_text_is_scored(llama: Subject, directory: Path) -> None:
    tokens = tokens_of(40, seed=6)
    scored = from_pretrained(directory)(torch.tensor([tokens])).logits[0].log_softmax(-1)
    session = llama.executor.open(llama.plan(mixed, lambda _: grouped(4)))
    assert torch.allclose(scored, torch.from_numpy(session.score(tokens, 0, 7)), atol=1e-3)


def test_what_it_cannot_do_is_refused(directory: Path) -> None:
    model = from_pretrained(directory)
    prompt = torch.tensor([tokens_of(8)])
    with pytest.raises(ArtefactError, match="give max_new_tokens or max_length"):
        model.generate(prompt)
    with pytest.raises(ArtefactError, match="needs input_ids"):
        model.generate(max_new_tokens=4)
    with pytest.raises(ArtefactError, match="found a DynamicCache; give a PlanCache"):
        model.generate(prompt, max_new_tokens=4, past_key_values=DynamicCache())
    with pytest.raises(ArtefactError, match="do not fit a cache made for 9"):
        model.generate(prompt, max_new_tokens=4, past_key_values=model.plan_cache(1, 9), eos_token_id=None)
    with pytest.raises(ArtefactError, match="cannot be cropped"):
        PlanCache(model.planned, 1, 8).crop(1)


def test_it_runs_where_this_project_is_not(directory: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(directory)!r}); from modeling_plan import from_pretrained\n"
        f"model = from_pretrained({str(directory)!r})\n"
        "import torch; print(model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, eos_token_id=None,"
        " pad_token_id=1, do_sample=False).tolist())\n"
        "assert not any(name.partition('.')[0] in ('planner', 'backends') for name in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", "-c", program]
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr
    options = {"max_new_tokens": 5, "eos_token_id": None, "pad_token_id": 1, "do_sample": False}
    assert found.stdout.strip() == str(
        from_pretrained(directory).generate(torch.tensor([[5, 6, 7]]), **options).tolist()
    )


def test_only_the_import_of_the_runner_differs_from_the_source(directory: Path) -> None:
    here = executor.GENERATION.read_text().splitlines()
    there = (directory / "modeling_plan.py").read_text().splitlines()
    assert [(a, b) for a, b in zip(here, there, strict=True) if a != b] == [
        (line, line.replace("backends.transformers.runner", "runner")) for line in here if "backends" in line
    ]
