package streaminfo

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestFlagsAreListedInTheOrderInWhichTheyWereSet(t *testing.T) {
	for want, f := range map[string]ResponseFlag{
		"-":                     0,
		"UH":                    ResponseFlag(0).With(NoHealthyUpstream),
		"URX,UF":                UpstreamRetryLimitExceeded.With(UpstreamConnectionFailure),
		"UF,URX":                UpstreamConnectionFailure.With(UpstreamRetryLimitExceeded),
		"DI,URX,UT":             DelayInjected.With(UpstreamRetryLimitExceeded).With(UpstreamRequestTimeout).With(DelayInjected),
		"UT,URX":                UpstreamRetryLimitExceeded | UpstreamRequestTimeout,
		"UDO,LH":                UnconditionalDropOverload.With(FailedLocalHealthCheck),
		"URX,LH,UH,UT,LR,UR":    UpstreamRetryLimitExceeded.With(0x1f),
		"URX,UF,UC":             UpstreamRetryLimitExceeded.With(UpstreamConnectionFailure) | UpstreamConnectionTermination,
		"DO,UDO,LH,UH,UT,LR,UR": DropOverload.With(UnconditionalDropOverload).With(FailedLocalHealthCheck).With(NoHealthyUpstream).With(UpstreamRequestTimeout).With(LocalReset).With(UpstreamRemoteReset),
	} {
		if got := f.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestWithIsAUnion(t *testing.T) {
	for range 1000 {
		var f, bits ResponseFlag
		var want []int
		for range rand.IntN(12) {
			i := rand.IntN(len(flagNames))
			if bits&(1<<i) == 0 {
				want = append(want, i)
			}
			bits |= 1 << i
			f = f.With(1 << i)
		}
		got, rest := []int(nil), f
		for rest != 0 {
			var i int
			i, rest = rest.Next()
			got = append(got, i)
		}
		if f&flagMask != bits || !slices.Equal(got[:min(len(got), maxOrdered)], want[:min(len(want), maxOrdered)]) || len(got) != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
}
