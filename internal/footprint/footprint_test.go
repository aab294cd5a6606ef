package footprint

import (
	"testing"
	"time"
)

// machine is a process that a keeper watches.
type machine struct {
	t        time.Time
	used     time.Duration
	mem      uint64
	free     uint64
	releases int
}

func (m *machine) keeper() *keeper {
	k := &keeper{
		now: func() time.Time { return m.t }, cpu: func() time.Duration { return m.used }, size: func() uint64 { return m.mem },
		free: func() uint64 { return m.free }, release: func() { m.releases++; m.mem, m.free = 10<<20, 0 },
	}
	k.start()
	return k
}

// run lets the process use a share of a processor for d.
func (m *machine) run(k *keeper, wait *time.Duration, d time.Duration, share float64) {
	for end := m.t.Add(d); m.t.Before(end); {
		m.t = m.t.Add(*wait)
		m.used += time.Duration(share * float64(*wait))
		*wait = k.tick()
	}
}

func TestMemoryIsGivenBackInThePausesOfWork(t *testing.T) {
	m := &machine{t: time.Unix(0, 0), mem: 10 << 20}
	k, wait := m.keeper(), idleTick
	m.run(k, &wait, 10*time.Second, 0.001)
	if m.releases != 0 || wait != idleTick {
		t.Fatalf("%d releases without work, next look in %v", m.releases, wait)
	}
	m.mem = 50 << 20
	m.run(k, &wait, 10*time.Second, 0.5)
	if m.releases != 0 || wait != busyTick {
		t.Fatalf("%d releases at work, next look in %v", m.releases, wait)
	}
	m.run(k, &wait, 450*time.Millisecond, 0.001)
	if m.releases != 1 {
		t.Fatalf("%d releases after work", m.releases)
	}
	m.run(k, &wait, time.Minute, 0.001)
	m.run(k, &wait, 5*time.Second, 0.5) // without growth
	m.run(k, &wait, 5*time.Second, 0.001)
	if m.releases != 1 {
		t.Fatalf("%d releases without growth", m.releases)
	}
	m.run(k, &wait, time.Second, 0.5)
	m.free = 8 << 20 // goroutines are gone that were there at the last release
	m.run(k, &wait, time.Second, 0.001)
	if m.releases != 2 {
		t.Fatalf("%d releases after much became free", m.releases)
	}
}

func TestFrequentPausesCostLittle(t *testing.T) {
	m := &machine{t: time.Unix(0, 0), mem: 10 << 20}
	k, wait := m.keeper(), idleTick
	for range 600 { // ten minutes
		m.mem = 50 << 20
		m.run(k, &wait, 500*time.Millisecond, 0.5)
		m.run(k, &wait, 500*time.Millisecond, 0.001)
	}
	if m.releases < 5 || m.releases > 30 {
		t.Errorf("%d releases in 600 pauses", m.releases)
	}
	m.run(k, &wait, 20*time.Minute, 0.001)
	m.mem = 50 << 20
	m.run(k, &wait, 5*time.Second, 0.5)
	before := m.releases
	m.run(k, &wait, time.Second, 0.001)
	if m.releases != before+1 {
		t.Error("a pause after a long rest is used at once")
	}
}

func TestKeepEnds(t *testing.T) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { Keep(stop); close(ended) }()
	close(stop)
	<-ended
	if processTime() <= 0 || held() == 0 {
		t.Error(processTime(), held())
	}
}
