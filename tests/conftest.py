"""Eight virtual CPU devices for the whole run, and what several rooms' tests share: models, groups, data, a server."""

import dataclasses
import itertools
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

QUICK_COMPILES = " ".join([
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    *(["--xla_cpu_use_fusion_emitters=false"] if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12) else []),
])
"""Compiling is most of what tests cost: unoptimised programs mean the same, and are there in a third of the time."""


def flags_for(devices):
    return f"{QUICK_COMPILES} --xla_force_host_platform_device_count={devices}"


_GIVEN = os.environ.get("XLA_FLAGS", "")
if "--xla_force_host_platform_device_count" not in _GIVEN:  # read when jax first looks for devices, not later
    os.environ["XLA_FLAGS"] = f"{flags_for(8)} {_GIVEN}".strip()

# a busy machine is no failure: no deadlines
settings.register_profile("shared_cores", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared_cores")


def pytest_addoption(parser):
    parser.addoption("--first", type=int, default=0, metavar="N",
                     help="begin with the N-th file and go around, so that runs that are cut off see different ones")


def pytest_collection_modifyitems(config, items):
    files = list(dict.fromkeys(item.path for item in items))
    if first := files and config.getoption("first") % len(files):
        place = {path: (number - first) % len(files) for number, path in enumerate(files)}
        items.sort(key=lambda item: place[item.path])


LIMITS = {"slow": float("inf"), "longer": 150.0, "quick": 30.0}
"""Seconds of processors, not of the clock, that a test of a tier may take: twenty times what it should where machines
differ threefold, so that what crept into the wrong tier is found, and a busy machine fails nobody."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = sum(os.times()[:4])
    result = yield
    taken = sum(os.times()[:4]) - before
    tier = next((tier for tier in LIMITS if item.get_closest_marker(tier)), "quick")
    if taken > LIMITS[tier]:
        pytest.fail(f"a {tier} test took {taken:.0f} seconds of processors, more than {LIMITS[tier]:.0f}; make it "
                    "smaller, or mark it otherwise (CONTRIBUTING.md)", pytrace=False)
    return result


@pytest.fixture(scope="session")
def shared():
    """Root of the real data (../shared/data of the repository)."""
    root = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip("the folder ../shared/data with real data is not there")
    return root


@pytest.fixture(scope="module")
def kept_programs(tmp_path_factory):
    """Programs that are compiled once are kept for all tests of this process's run."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    changes = {"jax_persistent_cache_min_compile_time_secs": 0.0,
               "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "xla")}
    before = {name: jax.config.values[name] for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def tiny_config(family="llama", **changes):
    from rlhf_jax.models import DecoderConfig

    switches = {"qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": "head"}, "mistral": {"window": 3}}.get(family, {})
    config = DecoderConfig(family, vocab_size=48, embed=16, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=32,
                           initializer_range=0.3)
    return dataclasses.replace(config, **switches | changes)


def random_params(config, seed=0):
    """Weights whose norms and biases are random too, so that leaving one out is seen."""
    import jax
    import jax.numpy as jnp

    from rlhf_jax.models import init_params

    leaves, tree = jax.tree.flatten(init_params(jax.random.key(seed), config))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noise = [jax.random.normal(key, x.shape, jnp.float32) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [x + 0.1 * n for x, n in zip(leaves, noise, strict=True)])


def random_groups(count, seed=0, *, vocab=48, k=(2, 2), prompt=(1, 6), response=(1, 6), holes=True, pairs="all"):
    """`count` groups; k, prompt and response are inclusive ranges. pairs: "all" (each response beats the next), "some"
    (any number of pairs in any order), or "none". At least one token of each response is trained."""
    import numpy as np

    from rlhf_jax.data.groups import PromptGroup, Response

    rng = np.random.default_rng(seed)

    def between(bounds):
        return int(rng.integers(bounds[0], bounds[1] + 1))

    def one_response():
        size = between(response)
        mask = rng.random(size) < 0.7 if holes else np.ones(size, bool)
        mask[rng.integers(size)] = True
        return Response(rng.integers(0, vocab, size).astype(np.int32), mask)

    groups = []
    for i in range(count):
        size = between(k)
        chain = tuple((a, a + 1) for a in range(size - 1)) if pairs != "none" else ()
        if pairs == "some" and size > 1:
            chain = tuple(tuple(int(x) for x in rng.permutation(size)[:2]) for _ in range(between((0, 3))))
        ids = rng.integers(0, vocab, between(prompt)).astype(np.int32)
        groups.append(PromptGroup(f"p{i}", ids, tuple(one_response() for _ in range(size)), pairs=chain,
                                  margins=tuple(rng.normal(size=len(chain)).tolist())))
    return groups


def random_reference(groups, seed=0):
    """Made-up reference log-probs of the trained tokens."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return [[-rng.gamma(2.0, 1.0, int(r.loss_mask.sum())).astype(np.float32) for r in g.responses] for g in groups]


def plain_hidden(params, config, ids):
    """[N, D] hidden states of one sequence [N]: the decoder written out plainly."""
    import jax
    import jax.numpy as jnp

    def norm(x, scale):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + config.norm_eps) * scale

    place = jnp.arange(len(ids))
    half = config.head_dim // 2
    angles = place[:, None] / config.rope.theta ** (2 * jnp.arange(half) / config.head_dim)

    def rotated(x):  # [N, heads, Dh]: pairs (x_i, x_{i + half}) as complex numbers
        turned = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angles)[:, None]
        return jnp.concatenate([turned.real, turned.imag], -1)

    def for_each_query_head(x):  # [N, K, Dh] to [N, H, Dh]
        return jnp.repeat(x, config.heads // config.kv_heads, axis=1)

    behind = place[:, None] - place[None, :]
    seen = (behind >= 0) & (behind < (config.window or len(ids) + 1))
    x = params["embed"][ids]
    for layer in range(config.layers):
        weights = jax.tree.map(lambda w, i=layer: w[i], params["layers"])
        attn, mlp = weights["attention"], weights["mlp"]
        y = norm(x, weights["attention_norm"])
        q, k, v = (jnp.einsum("nd,dhe->nhe", y, attn[name]) for name in "qkv")
        if config.qkv_bias:
            q, k, v = q + attn["q_bias"], k + attn["k_bias"], v + attn["v_bias"]
        if config.qk_norm == "head":
            q, k = norm(q, attn["q_norm"]), norm(k, attn["k_norm"])
        k, v = for_each_query_head(rotated(k)), for_each_query_head(v)
        scores = jnp.einsum("qhe,khe->hqk", rotated(q), k) / jnp.sqrt(1.0 * config.head_dim)
        seen_v = jnp.einsum("hqk,khe->qhe", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), -1), v)
        x = x + jnp.einsum("qhe,hed->qd", seen_v, attn["o"])
        y = norm(x, weights["mlp_norm"])
        gate = y @ mlp["gate"]
        x = x + (gate / (1 + jnp.exp(-gate)) * (y @ mlp["up"])) @ mlp["down"]
    return norm(x, params["final_norm"])


@pytest.fixture(scope="session")
def xla_flags():
    """xla_flags(devices): XLA_FLAGS of another process, with so many CPU devices and quick compiles."""
    return flags_for


@pytest.fixture(scope="session")
def tiny():
    """tiny(family, **changes): a `DecoderConfig` of two layers."""
    return tiny_config


@pytest.fixture(scope="session")
def weights():
    """weights(config, seed): random parameters, norms and biases included."""
    return random_params


@pytest.fixture(scope="session")
def make_groups():
    return random_groups


@pytest.fixture(scope="session")
def make_reference():
    return random_reference


@pytest.fixture(scope="session")
def plain():
    """plain(params, config, ids): an independent decoder for one sequence."""
    return plain_hidden


@pytest.fixture(scope="session")
def lone_mesh():
    """A mesh of one device."""
    import jax

    from rlhf_jax.config.mesh import MeshConfig
    from rlhf_jax.parallel import make_mesh

    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture
def exact_matmul():
    """float32 products in float32, whatever the backend would rather do."""
    import jax

    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def watch_arrays():
    """watch_arrays() -> made(): the living device arrays made since the watch began, whatever neighbours leave behind.

    Earlier arrays are held, so that none of them goes meanwhile and none of their ids is given again.
    """
    import jax

    def watch():
        before = {id(array): array for array in jax.live_arrays()}
        return lambda: [array for array in jax.live_arrays() if id(array) not in before]

    return watch


class FakeServer:
    """Answers each request by `behaviour(number, body)` -> a text (a chat turn), a dict (the whole answer), bytes (sent
    as they are), or (status, headers, text); None hangs, "cut" breaks off. A GET is answered from `pages`.

    Attributes:
      pages: path -> its JSON.
      asked: (path, body, headers) of all requests, in order.
    """

    def __init__(self, behaviour):
        self.behaviour, self.asked, self.pages, self._lock = behaviour, [], {}, threading.Lock()
        self.release = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake._lock:
                    number = len(fake.asked)
                    fake.asked.append((self.path, body, dict(self.headers)))
                fake.reply(self, fake.behaviour(number, body))

            def do_GET(self):
                found = fake.pages.get(self.path)
                fake.reply(self, (404, {}, "no such page") if found is None else found)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def reply(self, handler, said):
        status, headers = 200, {}
        if said is None:
            self.release.wait(20)
            return
        if isinstance(said, tuple):
            status, headers, said = said
            said = said.encode()
        if said == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.wfile.flush()
            handler.connection.close()
            handler.close_connection = True
            return
        if isinstance(said, str):
            said = {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": {"total_tokens": 10}}
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def questions(self):
        """How often each question was asked, by the last message."""
        texts = [body["messages"][-1]["content"] for _, body, _ in self.asked]
        return {text: texts.count(text) for text in texts}

    def close(self):
        self.release.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve():
    """serve(behaviour) -> a running `FakeServer`."""
    running = []

    def start(behaviour):
        running.append(FakeServer(behaviour))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def armorm_in_torch():
    """armorm_in_torch(folder): a torch module of ArmoRM's published layout with the folder's weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    class Gating(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            widths = [config.hidden_size, *[config.gating_hidden_dim] * config.gating_n_hidden, config.num_objectives]
            self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths))
            self.logit_scale = torch.nn.Parameter(torch.ones(1))
            self.temperature = config.gating_temperature

        def forward(self, x):
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return torch.softmax(self.layers[-1](x) / self.temperature, dim=-1) * self.logit_scale[0]

    class Gated(transformers.LlamaPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.model = transformers.LlamaModel(config)
            self.regression_layer = torch.nn.Linear(config.hidden_size, config.num_objectives, bias=False)
            self.reward_transform_matrix = torch.nn.Parameter(torch.eye(config.num_objectives))
            self.gating = Gating(config)
            self.post_init()

    return lambda folder: Gated.from_pretrained(folder).eval()


@pytest.fixture
def rlhf_jax(monkeypatch, capsys):
    """Runs a command line; returns (exit status, stdout, stderr)."""

    from rlhf_jax.cli import main

    def command(*args):
        monkeypatch.setattr("sys.argv", ["rlhf-jax", *map(str, args)])
        try:
            main.main()
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command
