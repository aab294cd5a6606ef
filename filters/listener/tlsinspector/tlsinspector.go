// Package tlsinspector is the tls_inspector listener filter: it tells TLS from
// plaintext and learns SNI and ALPN from the ClientHello, without ending TLS.
package tlsinspector

import (
	"errors"
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peek"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Factory makes tls_inspector filters.
type Factory struct{}

// TypeURLs implements filters.ListenerFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.ListenerFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (filters.ListenerFilter, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("tls_inspector: configuration is a %T", cfg)
	}
	f := &filter{c: c}
	if env != nil {
		count := func(name string) *stats.Counter { return env.Stats.Counter("envoy_tls_inspector_" + name) }
		f.found, f.notFound, f.tooLarge = count("tls_found"), count("tls_not_found"), count("client_hello_too_large")
		f.sni, f.noSNI, f.alpn, f.noALPN = count("sni_found"), count("sni_not_found"), count("alpn_found"), count("alpn_not_found")
		f.malformed = count("client_hello_malformed")
	}
	return f, nil
}

type filter struct {
	c                                    *Config
	found, notFound, tooLarge, malformed *stats.Counter
	sni, noSNI, alpn, noALPN             *stats.Counter
}

// OnAccept implements filters.ListenerFilter.
func (f *filter) OnAccept(c *filters.Connection) error {
	p := peek.Of(c)
	for n := 1; ; {
		b, err := p.Peek(n)
		h, need, perr := parse(b, f.c.MaxClientHello)
		if h == nil && perr == nil {
			if err != nil {
				return err
			}
			n = need
			continue
		}
		return f.done(c, h, perr)
	}
}

func (f *filter) done(c *filters.Connection, h *hello, err error) error {
	switch {
	case errors.Is(err, errTooLarge):
		f.tooLarge.Inc()
		return err
	case errors.Is(err, errMalformed):
		f.malformed.Inc()
		if f.c.CloseOnError {
			return err
		}
	}
	if h == nil {
		f.notFound.Inc()
		return nil
	}
	f.found.Inc()
	ci := c.Info.Conn
	ci.TransportProtocol = "tls"
	pick(h.serverName != "", f.sni, f.noSNI).Inc()
	pick(len(h.alpn) > 0, f.alpn, f.noALPN).Inc()
	if h.serverName != "" {
		ci.RequestedServerName = h.serverName
	}
	if len(h.alpn) > 0 {
		ci.ApplicationProtocols = h.alpn
	}
	return nil
}

func pick(b bool, yes, no *stats.Counter) *stats.Counter {
	if b {
		return yes
	}
	return no
}
