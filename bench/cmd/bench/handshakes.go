package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

const (
	handshakes = "handshakes"
	// handshakeTurns of handshakeTurn each, in turn, for each kind and contender.
	handshakeTurns, handshakeTurn = 5, 400 * time.Millisecond
	// identities are how many clients there are, where they come again.
	identities = 64
)

// handshakeKind is one figure of handshakes. They are whole ones, with a client
// certificate. The key exchange is X25519 for all, which every contender has,
// except where it is the figure.
type handshakeKind struct {
	figure string
	curve  tls.CurveID
	// fresh gives each connection a certificate that nobody has seen before.
	fresh bool
}

var handshakeKinds = []handshakeKind{
	{figure: report.Handshake, curve: tls.X25519},
	{figure: report.HandshakeNew, curve: tls.X25519, fresh: true},
	{figure: report.HandshakeHybrid, curve: tls.X25519MLKEM768},
}

// same is a configuration for every connection.
func same(c *tls.Config) func(int) *tls.Config { return func(int) *tls.Config { return c } }

// as returns the configuration of a client with an identity of that number.
func (b *bench) as(number int, curve tls.CurveID) (*tls.Config, error) {
	cert, err := b.ca.Issue(identity.Leaf{URIs: []string{fmt.Sprintf("spiffe://cluster.local/ns/app/sa/client-%d", number)}})
	if err != nil {
		return nil, err
	}
	c := b.client.Clone()
	c.Certificates, c.CurvePreferences = []tls.Certificate{*cert}, []tls.CurveID{curve}
	return c, nil
}

// handshakes measures them on all contenders in turn.
func (b *bench) handshakes(ctx context.Context) error {
	begin := time.Now()
	var ends []tlsEnd
	for _, name := range b.names {
		label := contender.Label(name)
		if name == "naive" || name == "floor" || label == "fairlead+istio" || tlsShape(name) == "" || b.report.Missing[label] != "" {
			continue
		}
		c, err := b.start(ctx, name, contender.Spec{})
		if err != nil {
			return err
		}
		if c != nil {
			defer c.Stop()
			ends = append(ends, tlsEnd{c, address(c, tlsShape(name))})
		}
	}
	for _, kind := range handshakeKinds {
		known := make([]*tls.Config, identities)
		for i := range known {
			var err error
			if known[i], err = b.as(i, kind.curve); err != nil {
				return err
			}
		}
		able := slices.DeleteFunc(slices.Clone(ends), func(e tlsEnd) bool { return !e.takes(ctx, known[0]) })
		for round := range handshakeTurns + 1 { // the first one warms up
			for _, e := range able {
				if err := b.shakeHands(ctx, e, kind, known, round); err != nil {
					return fmt.Errorf("%s of %s: %w", kind.figure, e.Name, err)
				}
			}
		}
	}
	slog.Info("scale", "figure", handshakes, "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// tlsEnd is a contender and where it ends TLS.
type tlsEnd struct {
	*contender.Contender
	addr string
}

// takes reports whether handshakes of that kind succeed.
func (e tlsEnd) takes(ctx context.Context, config *tls.Config) bool {
	t, err := load.OpenTunnel(ctx, e.addr, config)
	if err != nil {
		return false
	}
	t.Close()
	return true
}

// shakeHands is a turn of one contender.
func (b *bench) shakeHands(ctx context.Context, e tlsEnd, kind handshakeKind, known []*tls.Config, round int) error {
	const atOnce = 8
	var some tunnels
	number := 0
	before, err := e.Usage()
	if err != nil {
		return err
	}
	begin, took := time.Now(), time.Duration(float64(handshakeTurn)*min(1, b.o.size))
	for time.Since(begin) < took {
		batch := make([]*tls.Config, atOnce)
		for i := range batch {
			if batch[i] = known[number%len(known)]; kind.fresh {
				b.clients++
				if batch[i], err = b.as(b.clients, kind.curve); err != nil {
					return err
				}
			}
			number++
		}
		err := some.open(ctx, atOnce, e.addr, func(i int) *tls.Config { return batch[i] })
		some.close()
		if err != nil {
			return err
		}
		some.list = nil
	}
	elapsed := time.Since(begin)
	after, err := e.Usage()
	if err != nil || round == 0 {
		return err
	}
	b.figure(kind.figure, e.Contender, round, (after.CPU-before.CPU).Seconds()*1e6/float64(number))
	if kind.figure == report.Handshake {
		b.figure(report.HandshakeRate, e.Contender, round, float64(number)/elapsed.Seconds())
	}
	return nil
}
