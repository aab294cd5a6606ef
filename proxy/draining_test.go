package proxy

import (
	"testing"
	"time"
)

type busy int

func (b busy) Active() int { return int(b) }

func TestAReplacedChainIsOverWithoutStreamsOrAtItsEnd(t *testing.T) {
	now := time.Now()
	soon, before := now.Add(time.Second), now.Add(-time.Second)
	for _, c := range []struct {
		name          string
		active        busy
		filled, until time.Time
		over          bool
	}{
		{"a connection may still enter", 0, soon, soon, false},
		{"nothing is in it", 0, before, soon, true},
		{"a stream goes on", 1, before, soon, false},
		{"its streams are cut", 1, before, before, true},
	} {
		if got := (drainingChain{c.active, c.filled, c.until}).over(now); got != c.over {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}
