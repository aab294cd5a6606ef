package rego

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

const masked = "**REDACTED**"

// defaultMasks are hidden unless mask_defaults is DISABLED.
var defaultMasks = []string{
	"/input/attributes/request/http/headers/authorization",
	"/input/attributes/request/http/headers/proxy-authorization",
	"/input/attributes/request/http/headers/cookie",
	"/input/attributes/request/http/body",
	"/input/attributes/request/http/rawBody",
	"/input/parsed_body",
	"/headers/authorization",
	"/headers/proxy-authorization",
	"/headers/cookie",
}

// decisionLog writes decisions as JSON lines. It is safe for concurrent use.
type decisionLog struct {
	cfg    *logConfig
	policy string
	out    *slog.Logger
}

type logKey struct{ filename string }

// logFile is an open decision log, shared by its path.
type logFile struct {
	io.Writer
	f *os.File // nil for standard output
}

// Close closes the file.
func (l *logFile) Close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}

func acquireLog(shared *filters.Shared, cfg *logConfig, policy string) (*decisionLog, func(), error) {
	v, release, err := shared.Acquire(logKey{cfg.filename}, func() (any, error) {
		if cfg.filename == "" {
			return &logFile{Writer: os.Stdout}, nil
		}
		f, err := os.OpenFile(cfg.filename, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640) //nolint:gosec // a group of log readers is usual
		if err != nil {
			return nil, err
		}
		return &logFile{Writer: f, f: f}, nil
	})
	if err != nil {
		return nil, nil, err
	}
	w, ok := v.(*logFile)
	if !ok {
		panic(fmt.Sprintf("rego: %T shared under a log's key", v)) // programmer error: the key is private
	}
	// A line is one write to a file opened for append, so that loggers with
	// different settings may share it.
	return &decisionLog{cfg: cfg, policy: policy, out: slog.New(slog.NewJSONHandler(w, nil))}, release, nil
}

// write logs one decision. It runs before the request is changed.
func (l *decisionLog) write(s *filters.Stream, r *result, dryRun, pass bool) {
	event := map[string]any{
		"method": strings.Clone(s.Request.Get(message.Method)),
		"host":   strings.Clone(s.Request.Get(message.Authority)),
		"path":   withoutQuery(s.Request.Get(message.Path)),
	}
	if len(l.cfg.headers) > 0 {
		h := map[string]any{}
		for _, name := range l.cfg.headers {
			if v, ok := s.Request.Joined(name); ok {
				h[name] = v
			}
		}
		event["headers"] = h
	}
	if l.cfg.includeInput && r.input != nil {
		if in, err := ast.JSON(r.input); err == nil {
			event["input"] = in
		}
	}
	for _, path := range l.cfg.mask {
		mask(event, path)
	}
	attrs := []slog.Attr{
		slog.String("policy", l.policy),
		slog.String("result", outcomeNames[r.outcome]),
		slog.Bool("passed", pass),
		slog.Bool("dry_run", dryRun),
		slog.Float64("duration_us", float64(r.elapsed.Nanoseconds())/1e3),
		slog.String("request_id", s.Info.RequestID),
		slog.String("trace_id", s.Info.TraceID),
		slog.String("source_principal", principalOf(s)),
		slog.String("route", s.Info.RouteName),
	}
	if s.Info.Conn != nil {
		attrs = append(attrs, slog.String("source", s.Info.Conn.Remote.String()), slog.String("destination", s.Info.Conn.Local.String()))
	}
	if r.err != nil {
		attrs = append(attrs, slog.String("error", r.err.Error()))
	}
	for _, k := range []string{"method", "host", "path", "headers", "input"} {
		if v, ok := event[k]; ok {
			attrs = append(attrs, slog.Any(k, v))
		}
	}
	l.out.LogAttrs(context.Background(), slog.LevelInfo, "policy decision", attrs...)
}

func principalOf(s *filters.Stream) string {
	if p := s.Info.FilterState.GetString(peerPrincipalKey); p != "" || s.Info.Conn == nil {
		return p
	}
	return s.Info.Conn.PeerURI()
}

func withoutQuery(p string) string {
	p, _, _ = strings.Cut(p, "?")
	return strings.Clone(p)
}

// mask replaces the value at path, if there is one. "*" stands for any key or
// index.
func mask(v any, path []string) {
	if len(path) == 0 {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if path[0] != "*" && path[0] != k {
				continue
			}
			if len(path) == 1 {
				if e != nil {
					v[k] = masked
				}
				continue
			}
			mask(e, path[1:])
		}
	case []any:
		for i := range v {
			if path[0] != "*" && path[0] != jsonIndex(i) {
				continue
			}
			if len(path) == 1 {
				v[i] = masked
				continue
			}
			mask(v[i], path[1:])
		}
	}
}

func jsonIndex(i int) string {
	b, _ := json.Marshal(i)
	return string(b)
}
