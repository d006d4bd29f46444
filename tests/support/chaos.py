"""Memories that each know a word of their own, and what may happen to their files while many ask."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

import lcc
from lcc.serving.memory_files import served_digest
from lcc.synthetic.people import ATTRIBUTES
from tests.support.plain_memories import plain_memory
from tests.support.served import chat_body, is_error

IDS = tuple("abcdef")
QUESTION = "Where does Ada live?"
# Requests of each thread; further rounds follow while a memory has not answered, or something has not happened.
THREADS, REQUESTS, ROUNDS = 6, 60, 10
DEEDS = 7


def plant(loaded, folder):
    """Two files of each id, each with a town of its own, and the towns by id and digest."""
    files, towns = {}, {}
    names = iter(ATTRIBUTES["town"].values)
    for name in IDS:
        while len(files.setdefault(name, [])) < 2:
            town = next(names)
            text = f"Ada works every day as a baker. Ada lives in the quiet old town of {town}."
            with pytest.MonkeyPatch.context() as monkeypatch:
                memory = replace(plain_memory(*loaded, text, monkeypatch)[0], settings={"town": town})
            # The model does not find every town.
            if lcc.ask(*loaded, memory, [QUESTION]) == [town]:
                memory.save(folder / town)
                files[name].append((folder / town).read_bytes())
                towns[name, served_digest(memory)] = town
    return files, towns


class Chaos(threading.Thread):
    """Replaces, truncates, removes and restores files, and adds and deletes ids, until it is told to stop."""

    def __init__(self, folder, files, http):
        super().__init__()
        self.folder, self.files, self.http, self.draw = folder, files, http, random.Random(5)
        self.over, self.done, self.error = threading.Event(), Counter(), None

    def run(self):
        try:
            self.go_on()
        except BaseException as error:
            self.error = error

    def go_on(self):
        deeds = [self.replace, self.rewrite, self.truncate, self.grow, self.remove, self.rename, self.delete]
        while not self.over.wait(self.draw.uniform(0, 0.01)):
            name, deed = self.draw.choice(IDS), self.draw.choice(deeds)
            deed(self.path(name), self.draw.choice(self.files[name]))
            self.done[deed.__name__] += 1
        for name in IDS:
            self.replace(self.path(name), self.files[name][0])

    def path(self, name):
        return self.folder / f"{name}.lcc.safetensors"

    def replace(self, path, content):
        (self.folder / "new").write_bytes(content)
        (self.folder / "new").replace(path)

    def rewrite(self, path, content):
        path.write_bytes(content)

    def truncate(self, path, content):
        self.rewrite(path, content[: self.draw.randrange(len(content))])

    def grow(self, path, content):
        for end in (100, len(content) // 2, len(content)):
            path.write_bytes(content[:end])

    def remove(self, path, content):
        path.unlink(missing_ok=True)

    def rename(self, path, content):
        if path.exists():
            path.replace(self.folder / "away")
            shutil.copy2(self.folder / "away", path)

    def delete(self, path, content):
        name = path.name.split(".")[0]
        deleted = self.http.delete(f"/memories/{name}")
        assert deleted.status_code in (200, 404), deleted.text
        self.replace(path, content)
        added = self.http.post("/memories", json={"id": name, "path": path.name})
        assert added.status_code == 200, added.text


def ask(http, model, draw, towns) -> str:
    """Ask a memory, in any way; what came of it, or an AssertionError if it must not."""
    name = draw.choice(IDS)
    how = draw.choice([{"memory": name}, {"model": f"{model}:{name}"}, {"memories": [name]}])
    stream = draw.random() < 0.3
    body = chat_body(QUESTION) | {"model": model, "stream": stream, "temperature": 0} | how
    response = http.post("/chat/completions", json=body)
    if response.status_code != 200:
        assert response.status_code in (404, 409, 503), response.text
        assert is_error(response.json(), response.status_code), response.text
        return f"{response.status_code}"
    if not stream:
        said = response.json()
        text, memory = said["choices"][0]["message"]["content"], said["memory"]
    else:
        events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
        if "error" in events[-1]:
            return "error"
        text = "".join(event["choices"][0]["delta"]["content"] for event in events)
        memory = events[0]["memory"]
    assert memory["id"] == name, f"{memory} answered for {name}"
    assert text.strip() == towns[name, memory["digest"]], f"{name} said {text}"
    return name


def ask_in_chaos(http, model, folder, planted) -> None:
    """Many ask all memories while their files change: each answer is the right one's, and afterwards all is well."""
    files, towns = planted
    chaos = Chaos(folder, files, http)
    for name in IDS:
        chaos.replace(chaos.path(name), files[name][0])

    def asking(seed: int) -> Counter:
        draw = random.Random(seed)
        return Counter(ask(http, model, draw, towns) for _ in range(REQUESTS))

    outcomes: Counter = Counter()
    chaos.start()
    try:
        for round in range(ROUNDS):
            with ThreadPoolExecutor(THREADS) as threads:
                outcomes += sum(threads.map(asking, range(round * THREADS, (round + 1) * THREADS)), Counter())
            if set(IDS) <= outcomes.keys() and len(chaos.done) == DEEDS:
                break
    finally:
        chaos.over.set()
        chaos.join()
    if chaos.error is not None:
        raise chaos.error
    assert set(IDS) <= outcomes.keys(), f"some memory never answered: {outcomes}"
    assert len(chaos.done) == DEEDS, f"something never happened: {chaos.done}"
    for name in IDS:
        said = http.post("/chat/completions", json=chat_body(QUESTION, name, model=model, temperature=0)).json()
        assert said["choices"][0]["message"]["content"].strip() == towns[name, said["memory"]["digest"]]
