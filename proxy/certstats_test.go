package proxy

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
)

func TestMetricsSayWhenCertificatesExpire(t *testing.T) {
	now := time.Now()
	leaf := func(name string, left time.Duration) secret.State {
		return secret.State{Name: name, Leaf: &x509.Certificate{NotAfter: now.Add(left)}}
	}
	const day = 24 * time.Hour
	r := &stats.Registry{}
	var states []secret.State
	certificateStats(r, func() []secret.State { return states })
	for _, c := range []struct {
		name   string
		states []secret.State
		days   int64
		want   map[string]time.Duration
	}{
		{"none", nil, 4294967295, nil},
		{"the first one counts, whole days", []secret.State{leaf("default", 30*day), leaf("edge", 3*day-time.Minute), {Name: "ca", Err: errors.New("is no certificate")}}, 2, map[string]time.Duration{"default": 30 * day, "edge": 3*day - time.Minute}},
		{"renewed, and one is gone", []secret.State{leaf("default", 60*day+time.Hour)}, 60, map[string]time.Duration{"default": 60*day + time.Hour}},
		{"expired", []secret.State{leaf("default", 60*day), leaf("edge", -5*day)}, 0, map[string]time.Duration{"default": 60 * day, "edge": -5 * day}},
		{"of one name the first", []secret.State{leaf("inline", 9*day), leaf("inline", 7*day+time.Hour), leaf("inline", 8*day)}, 7, map[string]time.Duration{"inline": 7*day + time.Hour}},
	} {
		t.Run(c.name, func(t *testing.T) {
			states = c.states
			var b strings.Builder
			if err := r.WritePrometheus(&b); err != nil {
				t.Fatal(err)
			}
			want := []string{fmt.Sprintf("envoy_server_days_until_first_cert_expiring %d", c.days)}
			for name, left := range c.want {
				want = append(want, fmt.Sprintf("fairlead_certificate_expiration_unix_time_seconds{envoy_tls_certificate=%q} %d", name, now.Add(left).Unix()))
			}
			for _, w := range want {
				if !strings.Contains(b.String(), w+"\n") {
					t.Errorf("%q is missing in\n%s", w, b.String())
				}
			}
			if n := strings.Count(b.String(), "fairlead_certificate_expiration_unix_time_seconds{"); n != len(c.want) {
				t.Errorf("%d certificates, want %d in\n%s", n, len(c.want), b.String())
			}
		})
	}
}
