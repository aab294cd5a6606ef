package extauthz

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
)

// Explain says whether s would be the subject of a call, and to whom. The
// service is not called.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	if f.concerns != nil && !f.concerns(authz.Input{Info: &s.Info, Request: &s.Request}) {
		x := filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"filter_enabled_metadata does not match: the service is not asked"}}
		if f.c.DenyDisabled {
			x.Verdict, x.Status, x.Details = filters.VerdictDeny, f.c.StatusOnError, "ext_authz_error"
		}
		return x
	}
	cluster := ""
	switch {
	case f.grpc != nil:
		cluster = f.grpc.Cluster
	case f.http != nil:
		cluster = f.http.Cluster
	}
	x := filters.Explanation{Verdict: filters.VerdictUnknown, Text: []string{"the service behind cluster " + cluster + " would be asked; it is not asked here"}}
	if f.c.EnabledPPM < 1_000_000 {
		x.Text = append(x.Text, "filter_enabled: a share of the requests only")
	}
	if f.c.AllowOnError {
		x.Text = append(x.Text, "if it fails, the request passes")
	} else {
		x.Text = append(x.Text, "if it fails, the request is denied")
	}
	return x
}
