"""A small Hub on 127.0.0.1: the parts of its API that `huggingface_hub` calls to publish and to load a model.

Repositories live in memory. Every write needs `TOKEN`, and so does reading a private repository. Large files go through
LFS in one piece, as where `HF_HUB_DISABLE_XET=1`, to and from a storage at another port, which must not see the token.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "localtest" * 4
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "other"}
NOT_SERVED = {"/api/agent-harnesses"}  # which programs call the library: it does without
LFS_SUFFIXES = (".safetensors", ".bin", ".flac", ".opus", ".png")


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of it: of a large file, that of its pointer."""
        content = self.content
        if self.lfs:
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repository:
    """Commits by their id, and branches and pull requests, which are names of commits."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], ref: str) -> str:
        told = repr((len(self.commits), sorted((name, blob.oid) for name, blob in files.items())))
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """The server, from `with` to its end.

    Attributes:
        repositories: By `owner/name`.
        objects: Large files that arrived, by SHA-256.
        received: SHA-256 of each large file that was sent, in order; also where the connection broke.
        broken: SHA-256 of large files in the middle of which the connection breaks when they are sent here.
        cut: The same, when they are fetched from here, once each.
        ranges: Ranges that were asked for.
        unknown: Requests that it does not understand, or that give the token away; a test expects none.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[str] = []
        self.broken: set[str] = set()
        self.cut: set[str] = set()
        self.ranges: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds, but for `.gitattributes`."""
        repository = self.repositories[repo_id]
        files = repository.commits[repository.refs[revision]]
        return {name: blob.content for name, blob in files.items() if name != ".gitattributes"}


Answer = tuple[int, dict[str, str], bytes]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        self.hub = self.server_state
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        try:
            if self.command == "PUT":
                self._put(parts.path)
                return
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with self.hub.lock:
                answer = self._answer(parts.path)
        except RefusedError as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            answer = _json({"error": str(refused)}, refused.status, headers)
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 (http.server's names)

    def _send(self, answer: Answer) -> None:
        status, headers, body = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if (oid := headers.get("ETag", "").strip('"')) in self.hub.cut and status == 200:
            self.hub.cut.remove(oid)
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _answer(self, path: str) -> Answer:
        for method, pattern, serve in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                return serve(self, *(unquote(group) for group in match.groups() if group is not None))
        if path not in NOT_SERVED:
            self.hub.unknown.append(f"{self.command} {self.path}")
        raise RefusedError(404, "no such route")

    # Who asks

    @property
    def known(self) -> bool:
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return authorization is not None

    def _note_token(self) -> None:
        if self.headers.get("Authorization"):
            self.hub.unknown.append(f"the token went to storage: {self.command} {self.path}")

    def _writer(self) -> None:
        if not self.known:
            raise RefusedError(401, "Invalid username or password.")

    def _repository(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        known = self.known
        if repository is None or (repository.private and not known):
            raise RefusedError(404 if known else 401, "Repository not found", "RepoNotFound")
        return repository

    def _revision(self, repo_id: str, revision: str) -> tuple[Repository, str]:
        repository = self._repository(repo_id)
        sha = repository.resolve(revision)
        if sha is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, sha

    # What they ask

    def whoami(self) -> Answer:
        self._writer()
        return _json(
            {"type": "user", "name": "tester", "fullname": "Tester", "orgs": [], "auth": {"type": "access_token"}}
        )

    def validate_yaml(self) -> Answer:
        content = json.loads(self.body)["content"]
        data = yaml.safe_load(content.split("---")[1]) or {}
        errors = (
            []
            if data.get("license", "other") in LICENCES
            else [{"message": f'"license" must be one of {sorted(LICENCES)}'}]
        )
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create(self) -> Answer:
        self._writer()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repositories:
            return _json(answer | {"error": "You already created this model repo"}, 409)
        repository = Repository(private=asked.get("visibility") == "private")
        repository.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, "main")
        self.hub.repositories[repo_id] = repository
        return _json(answer)

    def model_info(self, repo_id: str, revision: str = "main") -> Answer:
        repository, sha = self._revision(repo_id, revision)
        siblings = [{"rfilename": name, **_description(blob)} for name, blob in sorted(repository.commits[sha].items())]
        told = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repository.private, "tags": []}
        return _json(told | {"siblings": siblings})

    def tree(self, repo_id: str, revision: str, _folder: str = "") -> Answer:
        repository, sha = self._revision(repo_id, revision)
        return _json([_entry(name, blob) for name, blob in sorted(repository.commits[sha].items())])

    def paths_info(self, repo_id: str, revision: str) -> Answer:
        repository, sha = self._revision(repo_id, revision)
        asked = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
        return _json([_entry(name, blob) for name, blob in repository.commits[sha].items() if name in asked])

    def refs(self, repo_id: str) -> Answer:
        repository = self._repository(repo_id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repository.refs.items()
        ]
        return _json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def branch(self, repo_id: str, branch: str) -> Answer:
        self._writer()
        repository = self._repository(repo_id)
        if branch in repository.refs:
            raise RefusedError(409, f"Reference already exists: {branch}")
        repository.refs[branch] = repository.refs["main"]
        return _json({})

    def preupload(self, repo_id: str, revision: str) -> Answer:
        self._writer()
        repository, sha = self._revision(repo_id, revision)
        there = repository.commits[sha]
        files = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if asked["path"].endswith(LFS_SUFFIXES) else "regular"
            blob = there.get(asked["path"])
            told = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append(told | ({"oid": blob.etag} if blob else {}))
        return _json({"files": files})

    def lfs_batch(self, repo_id: str) -> Answer:
        self._writer()
        self._repository(repo_id)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            told: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                verify = {"href": f"{self.hub.url}/lfs-verify/{asked['oid']}"}
                told["actions"] = {"upload": {"href": f"{self.hub.storage}/lfs/{asked['oid']}"}, "verify": verify}
            objects.append(told)
        return _json({"transfer": "basic", "objects": objects})

    def _put(self, path: str) -> None:
        """A large file; the connection may break in its middle."""
        oid = path.removeprefix("/lfs/")
        length = int(self.headers.get("Content-Length") or 0)
        self._note_token()
        with self.hub.lock:
            self.hub.received.append(oid)
        if oid in self.hub.broken:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        content = self.rfile.read(length) if length else _chunks(self.rfile)
        if hashlib.sha256(content).hexdigest() != oid:
            self._send(_json({"error": "other content than its name says"}, 400))
            return
        with self.hub.lock:
            self.hub.objects[oid] = content
        self._send((200, {"ETag": f'"{oid}"'}, b""))

    def lfs_verify(self, oid: str) -> Answer:
        if oid not in self.hub.objects:
            raise RefusedError(404, "no such object")
        return _json({})

    def commit(self, repo_id: str, revision: str) -> Answer:
        self._writer()
        repository, sha = self._revision(repo_id, revision)
        files = dict(repository.commits[sha])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", sha) != sha:
                raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise RefusedError(400, f"LFS pointer of {value['path']} points to a file that does not exist")
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        request = None
        if self.query.get("create_pr"):
            number = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
            revision, request = f"refs/pr/{number}", f"{self.hub.url}/{repo_id}/discussions/{number}"
        made = repository.commit(files, revision)
        told = {"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{made}"}
        return _json(told | ({"pullRequestUrl": request} if request else {}))

    def download(self, repo_id: str, revision: str, name: str) -> Answer:
        repository, sha = self._revision(repo_id, revision)
        blob = repository.commits[sha].get(name)
        headers = {"X-Repo-Commit": sha}
        if blob is None:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return _json({"error": "Entry not found"}, 404, headers | missing)
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:  # from another place, as the Hub does
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
            return 302, headers | {"Location": f"{self.hub.storage}/lfs-content/{blob.sha256}"}, b""
        return self._ranged(blob.content, headers)

    def lfs_content(self, oid: str) -> Answer:
        self._note_token()
        return self._ranged(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return 200, headers | {"Content-Length": str(len(content))}, content
        self.hub.ranges.append(asked[0])
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        if start >= len(content):
            raise RefusedError(416, "range not satisfiable")
        part = content[start : end + 1]
        told = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        return 206, headers | {"Content-Range": told, "Content-Length": str(len(part))}, part


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return status, {"Content-Type": "application/json"} | (headers or {}), json.dumps(content).encode()


def _chunks(stream: Any) -> bytes:
    """The body of a request in chunks."""
    content = b""
    while size := int(stream.readline(), 16):
        content += stream.read(size)
        stream.readline()
    stream.readline()
    return content


def _description(blob: Blob) -> dict[str, Any]:
    lfs = {"lfs": {"size": len(blob.content), "sha256": blob.sha256, "pointerSize": 134}} if blob.lfs else {}
    return {"size": len(blob.content), "blobId": blob.oid} | lfs


def _entry(name: str, blob: Blob) -> dict[str, Any]:
    lfs = {"lfs": {"size": len(blob.content), "oid": blob.sha256, "pointerSize": 134}} if blob.lfs else {}
    return {"type": "file", "path": name, "size": len(blob.content), "oid": blob.oid} | lfs


_NAME = "([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", f"/api/models/{_NAME}", _Handler.model_info),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", _Handler.model_info),
    ("GET", f"/api/models/{_NAME}/refs", _Handler.refs),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)(/.*)?", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/paths-info/(.+)", _Handler.paths_info),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", _Handler.branch),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", "/lfs-verify/(.+)", _Handler.lfs_verify),
    ("GET HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.download),
    ("GET HEAD", "/lfs-content/(.+)", _Handler.lfs_content),
]
