// Package admin serves the endpoints that operators and Istio's tools use,
// in Envoy's formats: /config_dump, /clusters, /stats, /ready, /logging and
// their relatives. What they show comes from functions that package proxy
// gives; nothing here knows how the proxy works.
//
// Endpoints that change something need POST and refuse requests with an
// Origin header, so that a web page in a browser on the same machine can't use
// them. There is no authentication: bind to a loopback address.
package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// State is the state of the server, as Envoy names it.
type State uint8

// States of envoy.admin.v3.ServerInfo.State.
const (
	Live State = iota
	Draining
	PreInitializing
	Initializing
)

var stateNames = [...]string{"LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING"}

// String returns Envoy's name, "LIVE".
func (s State) String() string { return stateNames[s] }

// ServerInfo is what /server_info shows.
type ServerInfo struct {
	Version string
	State   State
	Start   time.Time
	// Reason says why State is not Live, if that is known; /ready shows it.
	Reason string
	// Options are command line options by Envoy's names, Node the node as it
	// is announced to the control plane. Both are encoded as JSON.
	Options, Node any
}

// Listener is one line of /listeners.
type Listener struct {
	Name string
	// Addresses are what the listener is bound to.
	Addresses []string
}

// Source holds what the endpoints show and do. A nil function turns its
// endpoint off (404). All functions may be called concurrently.
type Source struct {
	Info func() ServerInfo
	// ConfigDump returns the entries of "configs"; each encodes as an object
	// with "@type". eds asks for endpoints, too. Secrets must be redacted.
	ConfigDump func(eds bool) []any
	Clusters   func() []Cluster
	Listeners  func() []Listener
	// Certs is /certs, Unsupported is /debug/unsupported; both are encoded as
	// JSON.
	Certs, Unsupported func() any
	// Memory is /debug/memory.
	Memory func() MemoryUse
	// Explain answers /debug/explain: body is a question in JSON, and the answer
	// is written to w as JSON, or as text if so asked. An error is the asker's.
	Explain func(w io.Writer, body []byte, text bool) error
	// Stats is served at /stats and /stats/prometheus.
	Stats *stats.Registry
	// Logging is /logging.
	Logging Logging
	// Drain starts draining listeners: all, or inbound ones only; without
	// graceful at once.
	Drain func(inboundOnly, graceful bool)
	// FailHealth makes the readiness probe fail (true) or pass again.
	FailHealth func(fail bool)
	// Quit ends the process in order. It must not wait for the admin server.
	Quit func()
}

// Handler is the tree of endpoints. It is complete once New and Handle
// returned, and then safe for concurrent use.
type Handler struct {
	mux       *http.ServeMux
	endpoints []endpoint
}

type endpoint struct {
	path, help string
	mutates    bool
}

// New returns the endpoints for s.
func New(s Source) *Handler {
	h := &Handler{mux: http.NewServeMux()}
	h.mux.HandleFunc("/{$}", h.index)
	h.handle("/help", "print out list of admin commands", false, true, h.help)
	h.handle("/ready", "print server state, return 200 if LIVE, otherwise return 503", false, s.Info != nil, s.ready)
	h.handle("/server_info", "print server version/status information", false, s.Info != nil, s.serverInfo)
	h.handle("/config_dump", "dump current configs (include_eds adds endpoints)", false, s.ConfigDump != nil, s.configDump)
	h.handle("/clusters", "upstream cluster status (format=json)", false, s.Clusters != nil, s.clusters)
	h.handle("/listeners", "print listener info (format=json)", false, s.Listeners != nil, s.listeners)
	h.handle("/certs", "print certs on machine", false, s.Certs != nil, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.Certs()) })
	h.handle("/stats", "print server stats (usedonly, filter=regex, format=json|prometheus)", false, s.Stats != nil, s.statsText)
	h.handle("/stats/prometheus", "print server stats in prometheus format", false, s.Stats != nil, s.prometheus)
	h.handle("/logging", "query/change logging levels (level=x)", true, s.Logging != nil, s.logging)
	h.handle("/drain_listeners", "drain listeners (graceful, inboundonly)", true, s.Drain != nil, s.drain)
	h.handle("/healthcheck/fail", "cause the server to fail health checks", true, s.FailHealth != nil, s.health(true))
	h.handle("/healthcheck/ok", "cause the server to pass health checks", true, s.FailHealth != nil, s.health(false))
	h.handle("/quitquitquit", "exit the server", true, s.Quit != nil, s.quit)
	h.handle("/memory", "print current allocation/heap usage", false, true, memory)
	h.handle("/debug/memory", "what buffers hold and may hold, by listener, cluster and stream (format=json)", false, s.Memory != nil, h.buffers(s.Memory))
	h.handle("/debug/unsupported", "fields and resources that are not executed", false, s.Unsupported != nil, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, s.Unsupported())
	})
	h.handle("/debug/explain", "what would happen to a request (JSON in the body; format=text)", true, s.Explain != nil, s.explain)
	h.handle("/debug/pprof/", "profiles of the Go runtime", false, true, pprof.Index)
	h.mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	h.mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	h.mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	h.mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return h
}

// Handle adds an endpoint, listed in /help. mutates makes it need POST.
func (h *Handler) Handle(path, help string, mutates bool, f http.Handler) {
	h.handle(path, help, mutates, true, f.ServeHTTP)
}

func (h *Handler) handle(path, help string, mutates, on bool, f http.HandlerFunc) {
	if !on {
		return
	}
	if mutates {
		f = needPOST(f)
	}
	h.endpoints = append(h.endpoints, endpoint{path, help, mutates})
	h.mux.HandleFunc(path, f)
}

// needPOST refuses other methods, and requests that a browser made for a page
// of another origin.
func needPOST(f http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodPost:
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "Method Not Allowed: use POST", http.StatusMethodNotAllowed)
		case r.Header.Get("Origin") != "":
			http.Error(w, "Forbidden: requests from web pages are not accepted", http.StatusForbidden)
		default:
			f(w, r)
		}
	}
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	h.mux.ServeHTTP(w, r)
}

func (h *Handler) sorted() []endpoint {
	es := slices.Clone(h.endpoints)
	slices.SortFunc(es, func(a, b endpoint) int { return strings.Compare(a.path, b.path) })
	return es
}

func (h *Handler) help(w http.ResponseWriter, _ *http.Request) {
	text(w)
	write(w, "admin commands are:\n")
	for _, e := range h.sorted() {
		how := ""
		if e.mutates {
			how = " (POST)"
		}
		write(w, "  %s%s: %s\n", e.path, how, e.help)
	}
}

func (h *Handler) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	write(w, "<!DOCTYPE html><title>Fairlead</title><h1>Fairlead admin</h1><table>\n")
	for _, e := range h.sorted() {
		name := html.EscapeString(e.path)
		if !e.mutates {
			name = `<a href="` + name + `">` + name + `</a>`
		} else {
			name += " (POST)"
		}
		write(w, "<tr><td>%s<td>%s\n", name, html.EscapeString(e.help))
	}
	write(w, "</table>\n")
}

func text(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/plain; charset=UTF-8") }

// write ignores errors: the client went away.
func write(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

// writeJSON writes v indented by one space, as Envoy does.
func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		http.Error(w, "encoding: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n'))
}

func (s *Source) ready(w http.ResponseWriter, _ *http.Request) {
	text(w)
	state := s.Info().State
	if state != Live {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	write(w, "%s\n", state)
	if reason := s.Info().Reason; state != Live && reason != "" {
		write(w, "%s\n", reason)
	}
}

func (s *Source) serverInfo(w http.ResponseWriter, _ *http.Request) {
	i := s.Info()
	up := fmt.Sprintf("%ds", int64(time.Since(i.Start)/time.Second))
	writeJSON(w, struct {
		Version     string `json:"version"`
		State       string `json:"state"`
		UptimeEpoch string `json:"uptime_current_epoch"`
		UptimeAll   string `json:"uptime_all_epochs"`
		Options     any    `json:"command_line_options,omitempty"`
		Node        any    `json:"node,omitempty"`
	}{i.Version, i.State.String(), up, up, i.Options, i.Node})
}

func (s *Source) configDump(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	configs := s.ConfigDump(q.Has("include_eds"))
	if configs == nil {
		configs = []any{}
	}
	if want := q.Get("resource"); want != "" {
		http.Error(w, "resource is not supported: fetch the whole dump", http.StatusBadRequest)
		return
	}
	writeJSON(w, map[string]any{"configs": configs})
}

func (s *Source) listeners(w http.ResponseWriter, r *http.Request) {
	ls := s.Listeners()
	slices.SortFunc(ls, func(a, b Listener) int { return strings.Compare(a.Name, b.Name) })
	if r.URL.Query().Get("format") == "json" {
		writeJSON(w, listenersJSON(ls))
		return
	}
	text(w)
	for _, l := range ls {
		write(w, "%s::%s\n", l.Name, strings.Join(l.Addresses, ","))
	}
}

func (s *Source) drain(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	s.Drain(q.Has("inboundonly"), q.Has("graceful"))
	text(w)
	write(w, "OK\n")
}

func (s *Source) health(fail bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s.FailHealth(fail)
		text(w)
		write(w, "OK\n")
	}
}

// maxQuestion bounds the body of /debug/explain.
const maxQuestion = 1 << 20

func (s *Source) explain(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestion))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	asText := r.URL.Query().Get("format") == "text"
	var out bytes.Buffer
	if err := s.Explain(&out, body, asText); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if asText {
		text(w)
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
	_, _ = out.WriteTo(w)
}

func (s *Source) quit(w http.ResponseWriter, _ *http.Request) {
	text(w)
	write(w, "OK\n")
	_ = http.NewResponseController(w).Flush()
	s.Quit()
}
