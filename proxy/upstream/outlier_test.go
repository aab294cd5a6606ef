package upstream

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func outlier() *xdsresource.OutlierDetection {
	return &xdsresource.OutlierDetection{
		Consecutive5xx: 3, ConsecutiveGatewayFailure: 2, ConsecutiveLocalOriginFailure: 2,
		EnforcingConsecutive5xx: 100, EnforcingConsecutiveLocalOriginFailure: 100,
		Interval: 10 * time.Second, BaseEjectionTime: 30 * time.Second, MaxEjectionTime: 300 * time.Second, MaxEjectionPercent: 50,
	}
}

func TestConsecutive5xxEjectsForAGrowingTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
		spec.Outlier = outlier()
		m := newTestManager(t, &origin{}, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		bad := c.hosts()[0]
		fail := func() {
			for range 3 {
				c.Status(bad, 500)
			}
		}
		c.Status(bad, 500)
		c.Status(bad, 500)
		c.Status(bad, 200)
		c.Status(bad, 500)
		if !bad.Healthy() {
			t.Fatal("ejected though a success came in between")
		}
		fail()
		for i, want := range []time.Duration{30 * time.Second, 60 * time.Second, 90 * time.Second} {
			if i > 0 {
				fail()
			}
			if bad.Healthy() {
				t.Fatalf("round %d: not ejected", i)
			}
			for range 20 {
				if pick(t, c) == bad {
					t.Fatal("picked an ejected host")
				}
			}
			start := time.Now()
			for !bad.Healthy() {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			if d := time.Since(start); d < want || d > want+10*time.Second {
				t.Errorf("round %d: back after %v, want %v and at most an interval", i, d, want)
			}
		}
		m.Close()
	})
}

func TestMaxEjectionPercentHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
		spec.Outlier = outlier()
		m := newTestManager(t, &origin{}, nil)
		m.Apply([]*xdsresource.Cluster{spec})
		c := m.Cluster("a")
		for _, h := range c.hosts() {
			for range 3 {
				c.Status(h, 503)
			}
		}
		n := 0
		for _, h := range c.hosts() {
			if !h.Healthy() {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d of 3 ejected with 50 %%", n)
		}
		m.Close()
	})
}

func TestLocalOriginFailures(t *testing.T) {
	for _, split := range []bool{false, true} {
		spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80")
		spec.Outlier = outlier()
		spec.Outlier.SplitExternalLocalOrigin = split
		c := serving(t, &origin{}, spec)
		h := c.hosts()[0]
		c.Failed(h, FailureConnect)
		c.Failed(h, FailureTimeout)
		if got := !h.Healthy(); got != split {
			t.Errorf("split %v: ejected %v after two", split, got)
		}
		c.Failed(h, FailureReset)
		if h.Healthy() {
			t.Errorf("split %v: not ejected after three", split)
		}
	}
}

func TestSuccessRateAndFailurePercentageEject(t *testing.T) {
	for _, kind := range []string{"success rate", "failure percentage"} {
		synctest.Test(t, func(t *testing.T) {
			spec := cluster("a", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80")
			spec.Outlier = outlier()
			spec.Outlier.Consecutive5xx = 0
			if kind == "success rate" {
				spec.Outlier.EnforcingSuccessRate, spec.Outlier.SuccessRateMinimumHosts, spec.Outlier.SuccessRateRequestVolume, spec.Outlier.SuccessRateStdevFactor = 100, 5, 10, 1900
			} else {
				spec.Outlier.EnforcingFailurePercentage, spec.Outlier.FailurePercentageMinimumHosts, spec.Outlier.FailurePercentageRequestVolume, spec.Outlier.FailurePercentageThreshold = 100, 5, 10, 85
			}
			m := newTestManager(t, &origin{}, nil)
			m.Apply([]*xdsresource.Cluster{spec})
			c := m.Cluster("a")
			for i, h := range c.hosts() {
				for n := range 20 {
					status := 200
					if i == 4 && n < 18 {
						status = 500
					}
					c.Status(h, status)
				}
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			for i, h := range c.hosts() {
				if h.Healthy() == (i == 4) {
					t.Errorf("%s: host %d healthy %v", kind, i, h.Healthy())
				}
			}
			m.Close()
		})
	}
}

func TestRetryBudget(t *testing.T) {
	b := &breaker{budget: &xdsresource.RetryBudget{Percent: 20, MinRetryConcurrency: 3}}
	b.requests.max, b.pending.max = 1000, 1000
	n := 0
	for b.takeRetry() {
		n++
	}
	if n != 3 {
		t.Errorf("%d retries without requests, want the minimum of 3", n)
	}
	for range 50 {
		b.requests.take()
	}
	for b.takeRetry() {
		n++
	}
	if n != 10 {
		t.Errorf("%d retries for 50 requests, want 20 %%", n)
	}
}
