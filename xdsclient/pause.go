package xdsclient

import (
	"math/rand/v2"
	"time"
)

// pauser is an exponential pause with jitter: uniform between half of the
// current step and the whole.
type pauser struct {
	min, max time.Duration
	step     time.Duration
}

func (b *pauser) reset() { b.step = 0 }

func (b *pauser) next() time.Duration {
	switch {
	case b.step == 0:
		b.step = b.min
	case b.step < b.max:
		b.step = min(2*b.step, b.max)
	}
	half := b.step / 2
	return half + rand.N(b.step-half+1)
}
