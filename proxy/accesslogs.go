package proxy

import (
	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/proxy/hcm"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// accessLogs compiles access loggers. One that can't be executed is reported
// and left out: a missing line denies nobody.
func (b *builder) accessLogs(where string, specs []*xdsresource.AccessLog) []*accesslog.Logger {
	var out []*accesslog.Logger
	for _, a := range specs {
		path := "access_log[" + a.Name + "]"
		switch {
		case a.Unknown != "": // File may be there all the same, with another format
			b.diag(where, path, "ignored", "not executed: "+a.Unknown)
		case a.OTLP != nil:
			l, release := b.s.otlpLog(a)
			b.holds.releases = append(b.holds.releases, release)
			out = append(out, l)
		case a.File != nil:
			l, err := b.s.logs.Logger(a.File, a.Filter)
			if err != nil {
				b.diag(where, path, "error", "lines are lost: "+err.Error())
				continue
			}
			out = append(out, l)
		default:
			b.diag(where, path, "ignored", "access logger "+a.TypeURL+" is not executed")
		}
	}
	return out
}

func hcmLogs(ls []*accesslog.Logger) []hcm.AccessLogger {
	out := make([]hcm.AccessLogger, len(ls))
	for i, l := range ls {
		out[i] = l
	}
	return out
}

func listenerLogs(ls []*accesslog.Logger) []listener.AccessLogger {
	out := make([]listener.AccessLogger, len(ls))
	for i, l := range ls {
		out[i] = l
	}
	return out
}
