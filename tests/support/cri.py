"""The container runtime interface as clients see it: the few calls of `runtime.v1` that start containers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc

from lazyfs.snapshotter.messages import message_classes

TIMEOUT_S = 120
_EXITED = 2  # ContainerState
_HOSTS_NETWORK = {"network": 2}  # NamespaceMode: the host's own

_MESSAGES = message_classes(
    "runtime.v1",
    {
        "ImageSpec": {"image": (1, "string")},
        "Image": {"id": (1, "string"), "repo_tags": (2, "repeated string")},
        "PullImageRequest": {"image": (1, "ImageSpec"), "auth": (2, "AuthConfig")},
        "AuthConfig": {
            "username": (1, "string"),
            "password": (2, "string"),
            "auth": (3, "string"),
            "server_address": (4, "string"),
            "identity_token": (5, "string"),
            "registry_token": (6, "string"),
        },
        "PullImageResponse": {"image_ref": (1, "string")},
        "RemoveImageRequest": {"image": (1, "ImageSpec")},
        "RemoveImageResponse": {},
        "ListImagesRequest": {},
        "ListImagesResponse": {"images": (1, "repeated Image")},
        "PodSandboxMetadata": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string")},
        "NamespaceOption": {
            "network": (1, "int32"),
            "pid": (2, "int32"),
            "ipc": (3, "int32"),
            "userns_options": (5, "UserNamespace"),
        },
        "UserNamespace": {
            "mode": (1, "int32"),
            "uids": (2, "repeated IDMapping"),
            "gids": (3, "repeated IDMapping"),
        },
        "IDMapping": {"host_id": (1, "uint32"), "container_id": (2, "uint32"), "length": (3, "uint32")},
        "LinuxSandboxSecurityContext": {"namespace_options": (1, "NamespaceOption")},
        "LinuxPodSandboxConfig": {
            "cgroup_parent": (1, "string"),
            "security_context": (2, "LinuxSandboxSecurityContext"),
        },
        "PodSandboxConfig": {
            "metadata": (1, "PodSandboxMetadata"),
            "log_directory": (3, "string"),
            "linux": (8, "LinuxPodSandboxConfig"),
        },
        "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig")},
        "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
        "StopPodSandboxRequest": {"pod_sandbox_id": (1, "string")},
        "StopPodSandboxResponse": {},
        "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "string")},
        "RemovePodSandboxResponse": {},
        "ListPodSandboxRequest": {},
        "ListPodSandboxResponse": {"items": (1, "repeated PodSandbox")},
        "PodSandbox": {"id": (1, "string")},
        "ContainerMetadata": {"name": (1, "string"), "attempt": (2, "uint32")},
        "LinuxContainerSecurityContext": {"namespace_options": (3, "NamespaceOption")},
        "LinuxContainerConfig": {"security_context": (2, "LinuxContainerSecurityContext")},
        "Mount": {
            "container_path": (1, "string"),
            "host_path": (2, "string"),
            "readonly": (3, "bool"),
            "uid_mappings": (6, "repeated IDMapping"),
            "gid_mappings": (7, "repeated IDMapping"),
            "image": (9, "ImageSpec"),
        },
        "ContainerConfig": {
            "metadata": (1, "ContainerMetadata"),
            "image": (2, "ImageSpec"),
            "command": (3, "repeated string"),
            "mounts": (7, "repeated Mount"),
            "log_path": (11, "string"),
            "linux": (15, "LinuxContainerConfig"),
        },
        "CreateContainerRequest": {
            "pod_sandbox_id": (1, "string"),
            "config": (2, "ContainerConfig"),
            "sandbox_config": (3, "PodSandboxConfig"),
        },
        "CreateContainerResponse": {"container_id": (1, "string")},
        "StartContainerRequest": {"container_id": (1, "string")},
        "StartContainerResponse": {},
        "StopContainerRequest": {"container_id": (1, "string"), "timeout": (2, "int64")},
        "StopContainerResponse": {},
        "RemoveContainerRequest": {"container_id": (1, "string")},
        "RemoveContainerResponse": {},
        "ListContainersRequest": {},
        "ListContainersResponse": {"containers": (1, "repeated Container")},
        "Container": {"id": (1, "string")},
        "ContainerStatusRequest": {"container_id": (1, "string")},
        "ContainerStatusResponse": {"status": (1, "ContainerStatus")},
        "ContainerStatus": {"id": (1, "string"), "state": (3, "int32"), "exit_code": (7, "int32")},
        "ExecSyncRequest": {
            "container_id": (1, "string"),
            "cmd": (2, "repeated string"),
            "timeout": (3, "int64"),
        },
        "ExecSyncResponse": {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int32")},
    },
)
_SERVICES = {
    "ImageService": ("PullImage", "RemoveImage", "ListImages"),
    "RuntimeService": (
        *("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "ListPodSandbox"),
        *(
            "CreateContainer",
            "StartContainer",
            "ListContainers",
            "StopContainer",
            "RemoveContainer",
            "ContainerStatus",
            "ExecSync",
        ),
    ),
}


class Cri:
    """A client of containerd's CRI.

    Args:
        channel: to its socket.
        name: tells this client's pods and cgroups from others'.
        images: to the socket of the image service, where that is another.
    """

    def __init__(self, channel: grpc.Channel, name: str, images: grpc.Channel | None = None) -> None:
        self._channel = channel
        self._images = images or channel
        self._name = name
        self._pods: dict[str, Any] = {}

    def call(self, method: str, **fields: Any) -> Any:
        (service,) = (name for name, methods in _SERVICES.items() if method in methods)
        ask = (self._images if service == "ImageService" else self._channel).unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=_MESSAGES[f"{method}Request"].SerializeToString,
            response_deserializer=_MESSAGES[f"{method}Response"].FromString,
        )
        return ask(_MESSAGES[f"{method}Request"](**fields), timeout=TIMEOUT_S, wait_for_ready=True)

    def pull(self, image: str, **auth: str) -> str:
        """Pull an image, with the fields of an AuthConfig if there are any."""
        told = {"auth": auth} if auth else {}
        return str(self.call("PullImage", image={"image": image}, **told).image_ref)

    def remove_image(self, image: str) -> None:
        self.call("RemoveImage", image={"image": image})

    def images(self) -> list[str]:
        return sorted(tag for image in self.call("ListImages").images for tag in image.repo_tags)

    def run_pod(self, name: str = "pod", namespaces: Mapping[str, Any] | None = None) -> str:
        """Start a sandbox; its id.

        Args:
            name: of it.
            namespaces: a NamespaceOption; that of the host's network if None.
        """
        config = _MESSAGES["PodSandboxConfig"](
            metadata={"name": f"{self._name}-{name}", "uid": name, "namespace": "tests"},
            linux={
                "cgroup_parent": f"/{self._name}",
                "security_context": {"namespace_options": namespaces or _HOSTS_NETWORK},
            },
        )
        pod = str(self.call("RunPodSandbox", config=config).pod_sandbox_id)
        self._pods[pod] = config
        return pod

    def create(
        self,
        pod: str,
        image: str,
        command: Sequence[str],
        name: str = "container",
        mounts: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Create a container in a sandbox; its id."""
        config = {
            "metadata": {"name": name},
            "image": {"image": image},
            "command": command,
            "mounts": mounts,
            "linux": {"security_context": {"namespace_options": _namespaces(self._pods[pod])}},
        }
        created = self.call(
            "CreateContainer", pod_sandbox_id=pod, config=config, sandbox_config=self._pods[pod]
        )
        return str(created.container_id)

    def start(self, container: str) -> None:
        self.call("StartContainer", container_id=container)

    def run(self, pod: str, image: str, command: Sequence[str], name: str = "container", **more: Any) -> str:
        """Create and start a container; its id."""
        container = self.create(pod, image, command, name, **more)
        self.start(container)
        return container

    def wait(self, container: str) -> int:
        """The exit code of a container, once it has ended."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            status = self.call("ContainerStatus", container_id=container).status
            if status.state == _EXITED:
                return int(status.exit_code)
            time.sleep(0.02)
        raise AssertionError(f"{container} goes on and on")

    def execute(self, container: str, *command: str) -> str:
        """The standard output of a command in a container."""
        done = self.call("ExecSync", container_id=container, cmd=command, timeout=TIMEOUT_S)
        assert done.exit_code == 0, done.stderr.decode() + done.stdout.decode()
        return str(done.stdout.decode())

    def remove(self, container: str) -> None:
        """Stop and remove a container."""
        self.call("StopContainer", container_id=container, timeout=0)
        self.call("RemoveContainer", container_id=container)

    def remove_pod(self, pod: str) -> None:
        """Stop and remove a sandbox and what is in it."""
        self.call("StopPodSandbox", pod_sandbox_id=pod)
        self.call("RemovePodSandbox", pod_sandbox_id=pod)
        self._pods.pop(pod, None)

    def pods(self) -> list[str]:
        """All sandboxes, those of calls that were cut short too."""
        return sorted(str(pod.id) for pod in self.call("ListPodSandbox").items)

    def containers(self) -> list[str]:
        """All containers, those of calls that were cut short too."""
        return sorted(str(container.id) for container in self.call("ListContainers").containers)

    def remove_pods(self) -> None:
        """Stop and remove all sandboxes and what is in them, also those that nobody was told of.

        So the kubelet does with what belongs to no pod that it knows.
        """
        for pod in self.pods():
            self.remove_pod(pod)


def _namespaces(pod: Any) -> Any:
    """The NamespaceOption of a PodSandboxConfig."""
    return pod.linux.security_context.namespace_options


@contextmanager
def connected_cri(socket: Path, name: str, images: Path | None = None) -> Iterator[Cri]:
    """A client of the containerd at a socket, which may come later, as may that of the image service."""
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    with ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(f"unix:{path}", options=options)) if path else None
            for path in (socket, images)
        ]
        assert channels[0] is not None
        yield Cri(channels[0], name, channels[1])
