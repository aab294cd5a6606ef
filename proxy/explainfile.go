package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/bootstrap"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ExplainBootstrap says what a proxy that runs the bootstrap doc would do with a
// request. It compiles the static resources, and those of the files that they
// refer to, as FromBootstrap does, and binds nothing. What would keep the proxy from starting is noted in the report; an
// error means that there is nothing to ask.
func ExplainBootstrap(doc []byte, o ProcessOptions, q *explain.Request) (*explain.Report, error) {
	p := newProcess(o)
	cfg, err := bootstrap.Parse(doc, p.dec)
	if err != nil {
		return nil, err
	}
	var notes []string
	if _, err := p.check(cfg); err != nil {
		pe, ok := errors.AsType[*xdsresource.ParseError](err)
		if !ok {
			return nil, err
		}
		for i := range pe.Problems {
			notes = append(notes, "a proxy would not start: "+pe.Problems[i].String())
		}
	}
	if cfg.ADS != nil || len(fromServers(cfg)) > 0 {
		notes = append(notes, "only the file's static resources and watched files are looked at; ask a running proxy for what its control plane sends")
	}
	s, err := New(Options{
		Offline: true, Registry: o.Registry, Node: cfg.Node, Static: staticResources(cfg), Identity: o.Identity,
		Logger: slog.New(slog.DiscardHandler), Stats: &stats.Registry{},
	})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	src := newSources(s, p.dec, s.stats, s.log)
	src.start(cfg)
	for _, d := range src.problems() {
		notes = append(notes, fmt.Sprintf("%s: %s: %s", d.Path, d.Resource, d.Message))
	}
	src.mu.Lock()
	res := src.wantLocked(&Resources{})
	src.mu.Unlock()
	if err := s.Compile(res); err != nil {
		return nil, err
	}
	r, err := s.Explain(q)
	if err == nil {
		r.Notes = append(notes, r.Notes...)
	}
	return r, err
}

// Compile makes dynamic, beside the static resources, what Explain answers by,
// without serving it. It takes the place of Apply in a Server that is only
// asked.
func (s *Server) Compile(dynamic *Resources) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errClosed
	case len(s.listeners) > 0:
		return errors.New("proxy: a server that serves is given its configuration by Apply")
	}
	res := merge(s.opt.Static, dynamic)
	s.secrets.SetADS(res.Secrets)
	s.applyClusters(res)
	s.clusters.Update(nil, sortedKeys(s.parting))
	s.parting = map[string]*xdsresource.Cluster{}
	for name, e := range res.Endpoints {
		s.clusters.UpdateEndpoints(name, e)
	}
	prev := s.snapshot.Load()
	b := &builder{s: s, res: res, prev: prev}
	snap := b.build()
	b.refreshRoutes(snap)
	s.snapshot.Store(snap)
	s.releaseReplaced(prev, snap)
	return nil
}

// DecodeQuestion reads a question in JSON; a field that does not exist is an
// error.
func DecodeQuestion(body []byte) (*explain.Request, error) {
	q := &explain.Request{}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(q); err != nil {
		return nil, fmt.Errorf("explain: the question is not as documented: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("explain: there is something behind the question")
	}
	return q, nil
}

// explain is /debug/explain.
func (p *Process) explain(w io.Writer, body []byte, text bool) error {
	q, err := DecodeQuestion(body)
	if err != nil {
		return err
	}
	r, err := p.server.Explain(q)
	if err != nil {
		return err
	}
	if text {
		return r.WriteText(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}
