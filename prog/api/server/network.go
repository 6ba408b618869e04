package server

import (
	"context"
	"net/http"

	"weft/prog/api"
)

// Network is the agent's access to all hosts.
type Network interface {
	Network(context.Context) (api.Network, error)
	NetworkEndpoints(context.Context) (api.NetworkEndpoints, error)
	HostReport(context.Context, api.HostRequest) (api.Report, error)
	Matrix(context.Context, api.MatrixRequest) (api.Matrix, error)
	Checks(context.Context, api.CheckRequest) (api.CheckReply, error)
	Logs
	Bundle(context.Context, api.HostRequest) (api.BundleReply, error)
}

// Logs has the agent's last log lines, also before the agent is ready.
type Logs interface {
	Logs(context.Context, api.LogsRequest) (api.LogsReply, error)
}

// AddLogs serves the path for logs.
func AddLogs(mux *http.ServeMux, l Logs) { write(mux, api.PathLogs, l.Logs) }

func addNetwork(mux *http.ServeMux, n Network) {
	read(mux, api.PathNetwork, n.Network)
	read(mux, api.PathEndpoints, n.NetworkEndpoints)
	write(mux, api.PathHost, n.HostReport)
	write(mux, api.PathMatrix, n.Matrix)
	write(mux, api.PathCheck, n.Checks)
	AddLogs(mux, n)
	write(mux, api.PathBundle, n.Bundle)
}
