// Package proxyprotocol is the proxy_protocol listener filter: it takes the
// client's address from the PROXY header (version 1 and 2) that a load
// balancer in front sends.
package proxyprotocol

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/filters/internal/peek"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Factory makes proxy_protocol filters.
type Factory struct{}

// TypeURLs implements filters.ListenerFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.ListenerFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (filters.ListenerFilter, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("proxy_protocol: configuration is a %T", cfg)
	}
	f := &filter{c: c}
	if env != nil {
		sc := env.Stats.Scope("envoy_proxy_proto_" + authz.MetricName(c.StatPrefix))
		for v := range f.found {
			l := stats.Label{Name: "envoy_proxy_protocol_version", Value: strconv.Itoa(v + 1)}
			f.found[v], f.disallowed[v], f.broken[v] = sc.Counter("versions_found", l), sc.Counter("versions_disallowed", l), sc.Counter("versions_error", l)
		}
		f.absentAllowed, f.absentDenied = sc.Counter("not_found_allowed"), sc.Counter("not_found_disallowed")
	}
	return f, nil
}

type filter struct {
	c                           *Config
	found, disallowed, broken   [2]*stats.Counter
	absentAllowed, absentDenied *stats.Counter
}

// OnAccept implements filters.ListenerFilter.
func (f *filter) OnAccept(c *filters.Connection) error {
	p := peek.Of(c)
	for n := 1; ; {
		b, err := p.Peek(n)
		h, need, perr := parse(b)
		switch {
		case errors.Is(perr, errAbsent) && f.c.Optional:
			f.absentAllowed.Inc()
			return nil
		case errors.Is(perr, errAbsent):
			f.absentDenied.Inc()
			return perr
		case perr != nil:
			f.broken[version(b)-1].Inc()
			return perr
		case h != nil:
			return f.accept(c, h)
		case err != nil:
			return err
		}
		n = need
	}
}

func version(b []byte) int {
	if len(b) > 0 && b[0] == signature2[0] {
		return 2
	}
	return 1
}

func (f *filter) accept(c *filters.Connection, h *header) error {
	if h.version == 1 && f.c.NoV1 || h.version == 2 && f.c.NoV2 {
		f.disallowed[h.version-1].Inc()
		return fmt.Errorf("proxy_protocol: version %d is not allowed here", h.version)
	}
	f.found[h.version-1].Inc()
	ci := c.Info.Conn
	if !h.local {
		ci.Remote, ci.Local, ci.LocalName = h.src, h.dst, ""
	}
	for t := h.tlvs; len(t) > 0; {
		kind, value, rest, _ := nextTLV(t)
		for _, r := range f.c.Rules {
			if r.Type != kind {
				continue
			}
			text := strings.ToValidUTF8(string(value), "!")
			if r.Base64 {
				text = base64.StdEncoding.EncodeToString(value)
			}
			ci.Metadata.Set(r.Namespace, r.Key, text)
		}
		t = rest
	}
	return peek.Consume(c.Conn, h.size)
}
