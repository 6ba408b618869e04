package server

import (
	"context"
	"net/http"

	"weft/prog/api"
)

// Policies is the agent's access to policies.
type Policies interface {
	Policies(context.Context) ([]api.Policy, error)
	ApplyPolicy(context.Context, api.ApplyRequest) (api.ApplyReply, error)
	DeletePolicy(context.Context, api.DeleteRequest) (api.ApplyReply, error)
	Explain(context.Context, api.ExplainRequest) (api.Explanation, error)
	Drops(context.Context) ([]api.Drop, error)
	PolicyStatus(context.Context) (api.PolicyStatus, error)
}

// AddPolicies serves the paths for policies.
func AddPolicies(mux *http.ServeMux, p Policies) {
	read(mux, api.PathPolicies, p.Policies)
	write(mux, api.PathApplyPolicy, p.ApplyPolicy)
	write(mux, api.PathDeletePolicy, p.DeletePolicy)
	write(mux, api.PathExplain, p.Explain)
	read(mux, api.PathDrops, p.Drops)
	read(mux, api.PathPolicyStatus, p.PolicyStatus)
}
