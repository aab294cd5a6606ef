// Package footprint keeps the memory of a process that has started near what
// serving needs.
package footprint

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Release gives back to the system what only starting needed: garbage of the
// configuration's decoding, and the pages of the program's own code and
// constants, which the kernel maps again (from the page cache, 16 at a time) as
// they are used. It takes a garbage collection; call it once, on a goroutine of
// its own, when the process is ready.
func Release() {
	debug.FreeOSMemory()
	_ = dropProgram() // the process is only larger without it
}

// Keep gives memory back whenever the process has become quiet after work, until
// stop is closed: garbage that no collection has met yet, stacks that have grown
// for requests, free pages. The runtime would do so after minutes. It does nothing
// while there is work, and what it costs is one collection a pause, rarer if
// pauses are frequent.
func Keep(stop <-chan struct{}) {
	k := keeper{now: time.Now, cpu: processTime, size: held, free: free, release: debug.FreeOSMemory}
	k.start()
	t := time.NewTimer(idleTick)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			t.Reset(k.tick())
		}
	}
}

const (
	// busyTick and idleTick are how often it looks, after work and in quiet times.
	busyTick, idleTick = 100 * time.Millisecond, 250 * time.Millisecond
	// quietShare is up to which part of one processor a process counts as quiet.
	quietShare = 0.02
	// pauseFor is how long it must be quiet: idle connections give up their
	// goroutines meanwhile.
	pauseFor = 300 * time.Millisecond
	// minGrowth is what is worth a collection.
	minGrowth = 2 << 20
	// minRest and maxRest bound the time between two releases.
	minRest, maxRest = time.Second, 2 * time.Minute
)

// keeper decides when to release.
type keeper struct {
	now     func() time.Time
	cpu     func() time.Duration
	size    func() uint64
	free    func() uint64 // part of size that nothing uses
	release func()

	at, released time.Time
	used         time.Duration
	base         uint64    // size after the last release
	worked       bool      // since the last release
	pause        time.Time // begin of quiet after that
	rest         time.Duration
}

func (k *keeper) start() {
	k.at, k.used, k.base, k.rest = k.now(), k.cpu(), k.size(), minRest
	k.released = k.at
}

// tick looks at what was used since the last one and returns when to look again.
func (k *keeper) tick() time.Duration {
	now, used := k.now(), k.cpu()
	quiet := float64(used-k.used) <= quietShare*float64(now.Sub(k.at))
	k.at, k.used = now, used
	since := now.Sub(k.released)
	switch {
	case !quiet:
		k.worked, k.pause = true, time.Time{}
		return busyTick
	case !k.worked:
		return idleTick
	case k.pause.IsZero():
		k.pause = now
		return busyTick
	case now.Sub(k.pause) < pauseFor:
		return busyTick
	case since < k.rest:
		return min(busyTick, k.rest-since)
	case !k.worthwhile():
		k.worked = false
		return idleTick
	}
	// Who pauses again and again pays for it ever less often.
	switch {
	case since > 4*k.rest:
		k.rest = minRest
	case since < k.rest+k.rest/2:
		k.rest = min(2*k.rest, maxRest)
	}
	k.release()
	k.worked = false
	k.base, k.released = k.size(), k.now()
	k.at, k.used = k.released, k.cpu()
	return idleTick
}

// worthwhile reports whether a release gives much back: what came since the last
// one may be garbage, and what is free, of stacks for example, is not needed.
func (k *keeper) worthwhile() bool {
	size, least := k.size(), minGrowth+k.base/8
	return size >= k.base+least || k.free() >= least
}

// held is the memory of the Go runtime that is not given back.
func held() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() - s[1].Value.Uint64()
}

// free is the part of it that is neither in use nor garbage.
func free() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
