"""A Hub on 127.0.0.1, in memory: as much of its HTTP interface as huggingface_hub needs to push and to load.

Small files travel inside the commit, safetensors through the LFS interface, as on the real Hub. Every request is noted,
so that a test can tell which files were fetched.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Repository:
    """Files of the newest commit; older ones cannot be fetched."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.commit("initial commit")

    def commit(self, message: str) -> str:
        self.commits.append(message)
        return self.sha

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()


class Hub:
    """Start with `with Hub() as hub:`; `hub.url` is the endpoint, `hub.repositories["user/name"].files` the content."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}  # LFS objects by sha256
        self.requests: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def put(self, repository: str, files: dict[str, bytes]) -> None:
        """Add files as if someone had pushed them."""
        with self.lock:
            target = self.repositories.setdefault(repository, Repository())
            target.files.update(files)
            target.commit(f"put {sorted(files)}")

    def copy(self, source: str, target: str, without: str | None = None) -> None:
        self.put(target, {name: data for name, data in self.repositories[source].files.items() if name != without})

    def fetched(self, repository: str) -> set[str]:
        """Paths of the files of a repository that a client has asked for."""
        pattern = re.compile(rf"GET /{repository}/resolve/\w+/(.+)")
        return {unquote(match[1]) for match in map(pattern.match, self.requests) if match}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, value) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def missing(self, what: str) -> None:
        """`what` is the Hub's word for it: RepoNotFound, EntryNotFound."""
        self.answer(404, X_Error_Code=what, X_Error_Message=f"{what}: {self.path}")

    # -- requests -------------------------------------------------------------------------------------------------

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        # a Space is kept as the repository "space.user/name"
        path = path.replace("/api/spaces/", "/api/models/space.").replace("/spaces/", "/space.")
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            for pattern, method in ROUTES:
                match = re.fullmatch(pattern, f"{self.command} {path}")
                if match:
                    return method(self, body, *match.groups())
            self.answer(501, f"the test server has no {self.command} {path}".encode())

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None:
            self.missing("RepoNotFound")
        return found

    def whoami(self, body: bytes) -> None:
        self.answer_json({"name": "user", "type": "user", "orgs": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if asked.get("type") == "space":
            assert asked["sdk"] == "gradio"
            name = f"space.{name}"
        if name in self.hub.repositories:
            return self.answer(409, json.dumps({"url": f"{self.hub.url}/{name}"}).encode())
        self.hub.repositories[name] = Repository()
        self.answer_json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def validate_card(self, body: bytes) -> None:
        self.answer_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if self.repository(name):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        objects = [
            {
                "oid": item["oid"],
                "size": item["size"],
                "actions": {
                    "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/{item['oid']}/verify"},
                },
            }
            for item in json.loads(body)["objects"]
        ]
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(422, b"the content is not what its name says")
        self.hub.uploads[oid] = body
        self.answer(200)

    def lfs_verify(self, body: bytes, oid: str) -> None:
        self.answer(200 if oid in self.hub.uploads else 404)

    def lfs_download(self, body: bytes, oid: str) -> None:
        self.answer(200, self.hub.uploads[oid])

    def commit(self, body: bytes, name: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        message = ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.uploads[value["oid"]]
            else:
                return self.answer(501, f"the test server knows no {entry['key']}".encode())
        sha = repository.commit(message)
        self.answer_json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})

    def info(self, body: bytes, name: str) -> None:
        repository = self.repository(name)
        if repository is not None:
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            self.answer_json({"id": name, "sha": repository.sha, "siblings": siblings, "tags": [], "private": False})

    def tree(self, body: bytes, name: str) -> None:
        repository = self.repository(name)
        if repository is not None:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(repository.files.items())
            ]
            self.answer_json(entries)

    def resolve(self, body: bytes, name: str, path: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        if path not in repository.files:
            return self.missing("EntryNotFound")
        data = repository.files[path]
        oid = hashlib.sha256(data).hexdigest()
        headers = {"X_Repo_Commit": repository.sha, "ETag": f'"{oid}"'}
        if not path.endswith(".safetensors"):
            return self.answer(200, data, **headers)
        # Large files lie elsewhere. Another host name: the client follows a redirect within one host already on HEAD,
        # and would miss the commit.
        self.hub.uploads[oid] = data
        url = f"http://localhost:{self.server.server_port}/lfs/{oid}"
        self.answer(302, Location=url, X_Linked_Size=str(len(data)), X_Linked_ETag=f'"{oid}"', **headers)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_card),
    (rf"POST /api/models/{NAME}/preupload/main", Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(\w+)", Handler.lfs_upload),
    (r"POST /lfs/(\w+)/verify", Handler.lfs_verify),
    (r"(?:GET|HEAD) /lfs/(\w+)", Handler.lfs_download),
    (rf"POST /api/models/{NAME}/commit/main", Handler.commit),
    (rf"GET /api/models/{NAME}(?:/revision/\w+)?", Handler.info),
    (rf"GET /api/models/{NAME}/tree/\w+", Handler.tree),
    (rf"(?:GET|HEAD) /{NAME}/resolve/\w+/(.+)", Handler.resolve),
]
