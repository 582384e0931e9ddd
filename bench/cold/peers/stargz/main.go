// The stargz snapshotter as a daemon: stargz-grpc SOCKET ROOT. Debian packages its library, but not its daemon; like
// that one, this serves what the library makes of a default configuration.
package main

import (
	"context"
	"log"
	"net"
	"os"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	socket, root := os.Args[1], os.Args[2]
	snapshotter, err := service.NewStargzSnapshotterService(context.Background(), root, &service.Config{})
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}
