package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// RotatorConfig is a Rotator's configuration; zero values mean the defaults
// given.
type RotatorConfig struct {
	// Fetch gets a new certificate. Each call is bounded by FetchTimeout.
	Fetch        func(context.Context) (Material, error)
	FetchTimeout time.Duration // 15 s
	// Fraction of a certificate's lifetime after which it is replaced, 0.5;
	// Jitter is added or taken, 0.01.
	Fraction, Jitter float64
	// MinBackoff (500 ms) and MaxBackoff (2 min) bound the pause after a
	// failure, which doubles and is jittered by 20 %.
	MinBackoff, MaxBackoff time.Duration
	Logger                 *slog.Logger
	// Report, if not nil, is told each attempt's outcome; it must not block.
	Report func(Material, error)
}

// Rotator is a Source that replaces its certificate in time. It keeps the old
// one until it has a new one, whatever happens.
type Rotator struct {
	Static
	cfg RotatorConfig

	mu      sync.Mutex
	err     error
	renewed time.Time
	wake    chan struct{}
}

// NewRotator returns a Rotator that is empty until Run has fetched.
func NewRotator(c RotatorConfig) *Rotator {
	for d, def := range map[*time.Duration]time.Duration{
		&c.FetchTimeout: 15 * time.Second, &c.MinBackoff: 500 * time.Millisecond, &c.MaxBackoff: 2 * time.Minute,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	if c.Fraction <= 0 || c.Fraction >= 1 {
		c.Fraction = 0.5
	}
	if c.Jitter <= 0 {
		c.Jitter = 0.01
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Rotator{cfg: c, wake: make(chan struct{}, 1)}
}

// Err is why the last attempt failed, nil if it did not; renewed is when the
// certificate was fetched, zero if never.
func (r *Rotator) Err() (renewed time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.renewed, r.err
}

// Renew makes Run fetch now.
func (r *Rotator) Renew() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run fetches and rotates until ctx ends, and returns ctx's error. It is
// called once.
func (r *Rotator) Run(ctx context.Context) error {
	var step time.Duration
	for {
		m, err := r.fetch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.mu.Lock()
		r.err = err
		if err == nil {
			r.renewed = time.Now()
		}
		r.mu.Unlock()
		if err == nil {
			r.Set(m)
		}
		if r.cfg.Report != nil {
			r.cfg.Report(m, err)
		}
		var at time.Time
		if err != nil {
			step = min(max(2*step, r.cfg.MinBackoff), r.cfg.MaxBackoff)
			pause := jitter(step, 0.2)
			at = time.Now().Add(pause)
			r.cfg.Logger.Warn("getting a certificate failed", "error", err, "retry_in", pause, "serving", r.describe())
		} else {
			step = 0
			at = r.renewAt(m)
			r.cfg.Logger.Info("certificate renewed", "expires", m.Certificate.Leaf.NotAfter, "next", at)
		}
		if err := r.sleepUntil(ctx, at); err != nil {
			return err
		}
	}
}

func (r *Rotator) fetch(ctx context.Context) (Material, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.FetchTimeout)
	defer cancel()
	m, err := r.cfg.Fetch(ctx)
	if err == nil && (m.Certificate == nil || m.Certificate.Leaf == nil) {
		err = errors.New("no certificate")
	}
	if err == nil && time.Now().After(m.Certificate.Leaf.NotAfter) {
		err = fmt.Errorf("the new certificate expired at %s already (is the clock right?)", m.Certificate.Leaf.NotAfter.Format(time.RFC3339))
	}
	return m, err
}

func (r *Rotator) describe() string {
	c := r.Certificate()
	if c == nil {
		return "none"
	}
	return "until " + c.Leaf.NotAfter.Format(time.RFC3339)
}

// renewAt is when m's certificate has lived for Fraction of its lifetime. It
// carries no monotonic reading: the certificate counts wall-clock time.
func (r *Rotator) renewAt(m Material) time.Time {
	l := m.Certificate.Leaf
	f := r.cfg.Fraction + (2*rand.Float64()-1)*r.cfg.Jitter
	at := l.NotBefore.Add(time.Duration(float64(l.NotAfter.Sub(l.NotBefore)) * f))
	if soonest := time.Now().Add(jitter(r.cfg.MaxBackoff, 0.2)); at.Before(soonest) {
		// Mostly used up when it was issued: halve what is left instead.
		at = time.Now().Add(max(time.Until(l.NotAfter)/2, r.cfg.MinBackoff))
	}
	return at.Round(0)
}

// sleepUntil looks at the clock every few minutes, since a suspended machine
// stops timers but not certificates.
func (r *Rotator) sleepUntil(ctx context.Context, at time.Time) error {
	const slice = 5 * time.Minute
	t := time.NewTimer(0)
	defer t.Stop()
	<-t.C
	for {
		left := time.Until(at)
		if left <= 0 {
			return nil
		}
		t.Reset(min(left, slice))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
			return nil
		case <-t.C:
		}
	}
}

func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + (2*rand.Float64()-1)*share))
}

var _ Source = (*Rotator)(nil)
