package listener

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/overload"
)

func TestWhileMemoryIsShortOnlyNewConnectionsAreRefused(t *testing.T) {
	var used atomic.Uint64
	m := overload.New(overload.Options{Limit: 1000, Used: used.Load})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	cfg := config(&lines{}, &Chain{Name: "a", Terminal: greeter{"hello"}})
	cfg.Overload = m
	l, addr := start(t, cfg)
	old, said := hear(t, addr)
	if said != "hello" {
		t.Fatalf("before: %q", said)
	}
	used.Store(850)
	eventually(t, "the memory is short", m.RefusesConnections)
	for range 3 {
		if _, said := hear(t, addr); said != "." {
			t.Errorf("a new connection heard %q", said)
		}
	}
	_ = old.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := old.Read(make([]byte, 1)); n != 0 || err == nil || !isTimeout(err) {
		t.Errorf("the open connection: %d, %v", n, err)
	}
	if l.Active() != 1 || l.st.overloadReject.Value() != 3 {
		t.Errorf("%d active, %d refused", l.Active(), l.st.overloadReject.Value())
	}
	used.Store(100)
	eventually(t, "the memory is free", func() bool { return !m.RefusesConnections() })
	if _, said := hear(t, addr); said != "hello" {
		t.Errorf("after: %q", said)
	}
}

func isTimeout(err error) bool {
	te, ok := err.(interface{ Timeout() bool })
	return ok && te.Timeout()
}
