package demo

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// check is one row: what it shows, what is expected, and how it is found out.
// run returns what was seen and whether that is as expected; an error is both.
type check struct {
	name, expected string
	run            func(context.Context, *mesh, string) (seen string, ok bool, err error)
}

var checks = []check{
	{"mutual TLS", "caller known; nothing without a certificate", checkTLS},
	{"around the waypoint", "the pod's ztunnel refuses", checkBypass},
	{"weighted route", "90/10: 6 to 14 % of 1000 from v2", checkSplit},
	{"route by header", "20 of 20 from v2", checkHeaderRoute},
	{"retry", "200 after a failed attempt", checkRetry},
	{"timeout", "504 after 250 ms, the app's work cancelled", checkTimeout},
	{"circuit breaker", "3 go on, the 4th gets 503 UO, then closed", checkBreaker},
	{"identity refused", "403, nothing reaches the app", checkIdentity},
	{"Rego policy", "422 with the reason; 200 if it holds", checkRego},
	{"card number on its way out", "the bank gets **** **** **** 1111", checkCard},
	{"live push under load", "v1 becomes v2, no request fails", checkPush},
}

func (c *check) check(ctx context.Context, m *mesh) Row {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := time.Now()
	seen, ok, err := c.run(ctx, m, c.name)
	if err != nil {
		seen, ok = strings.TrimSpace(seen+" "+err.Error()), false
	}
	return Row{Name: c.name, Expected: c.expected, Seen: seen, OK: ok, Took: time.Since(begin)}
}

func checkTLS(ctx context.Context, m *mesh, check string) (string, bool, error) {
	a, err := m.client.send(ctx, check, reviewsURL+"/", "")
	if err != nil {
		return "", false, err
	}
	caller := m.v1.seen(check).caller + m.v2.seen(check).caller
	if a.status != http.StatusOK || caller != clientID {
		return fmt.Sprintf("%d, caller %q", a.status, caller), false, nil
	}
	// Whoever has no certificate of the mesh gets no tunnel anywhere.
	for _, host := range []int{hostWaypoint, hostEgress, hostV1, hostV2} {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}} //nolint:gosec // it is the server who has to refuse
		c, err := d.DialContext(ctx, "tcp", m.ip(host)+":15008")
		if err != nil {
			return "", false, err
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = c.Read(make([]byte, 1)) // TLS 1.3 tells of a refusal by the first read
		_ = c.Close()
		if err == nil || !strings.Contains(err.Error(), "certificate required") {
			return fmt.Sprintf("%s:15008 did not ask for a certificate (%v)", m.ip(host), err), false, nil
		}
	}
	return strings.TrimPrefix(caller, "spiffe://") + "; 4 of 4 refuse", true, nil
}

func checkBypass(ctx context.Context, m *mesh, check string) (string, bool, error) {
	a, err := m.client.send(ctx, check, "http://"+m.ip(hostV1)+":9080/", "")
	if n := m.v1.seen(check).count; err == nil || n > 0 {
		return fmt.Sprintf("%+v, the app saw %d", a, n), false, nil
	}
	const refusal = "connection not allowed by ruleset"
	if !strings.Contains(err.Error(), refusal) {
		return "", false, err
	}
	return refusal, true, nil
}

func checkSplit(ctx context.Context, m *mesh, check string) (string, bool, error) {
	const total, workers = 1000, 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	answers := map[string]int{}
	for range workers {
		wg.Go(func() {
			for range total / workers {
				a, err := m.client.send(ctx, check, reviewsURL+"/", "")
				if err == nil && a.status != http.StatusOK {
					err = fmt.Errorf("%d %s", a.status, a.body)
				}
				mu.Lock()
				if err != nil {
					failed = err
				} else {
					answers[a.body]++
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return "", false, failed
	}
	// 1000 draws at 10 %: the deviation is 9.5, so that 4 of them are once in
	// 16,000 runs.
	v1, v2 := answers["reviews v1"], answers["reviews v2"]
	ok := v2 >= 60 && v2 <= 140 && v1+v2 == total && m.v1.seen(check).count == v1 && m.v2.seen(check).count == v2
	return fmt.Sprintf("v1 %d, v2 %d: %.1f %%", v1, v2, float64(v2)*100/total), ok, nil
}

func checkHeaderRoute(ctx context.Context, m *mesh, check string) (string, bool, error) {
	v2 := 0
	for range 20 {
		a, err := m.client.send(ctx, check, reviewsURL+"/", "", "x-version", "v2")
		if err != nil {
			return "", false, err
		}
		if a.status == http.StatusOK && a.body == "reviews v2" {
			v2++
		}
	}
	return fmt.Sprintf("%d of 20 from v2", v2), v2 == 20 && m.v2.seen(check).count == 20, nil
}

func checkRetry(ctx context.Context, m *mesh, check string) (string, bool, error) {
	a, err := m.client.send(ctx, check, reviewsURL+"/flaky", "")
	if err != nil {
		return "", false, err
	}
	n := m.v1.seen(check).count
	return fmt.Sprintf("%d, the app saw %d attempts", a.status, n), a.status == http.StatusOK && n == 2, nil
}

func checkTimeout(ctx context.Context, m *mesh, check string) (string, bool, error) {
	begin := time.Now()
	a, err := m.client.send(ctx, check, reviewsURL+"/slow", "")
	if err != nil {
		return "", false, err
	}
	took := time.Since(begin)
	cancelled := eventually(ctx, func() bool { return m.v1.seen(check).cancelled == 1 })
	seen := fmt.Sprintf("%d %s after %d ms", a.status, a.header.Get("x-flags"), took.Milliseconds())
	if cancelled {
		seen += ", cancelled"
	}
	return seen, a.status == http.StatusGatewayTimeout && took >= 250*time.Millisecond && took < 5*time.Second && cancelled, nil
}

func checkBreaker(ctx context.Context, m *mesh, check string) (string, bool, error) {
	const limit = 3
	var wg sync.WaitGroup
	var held [limit]int
	for i := range held {
		wg.Go(func() {
			if a, err := m.client.send(ctx, check, reviewsURL+"/limited", ""); err == nil {
				held[i] = a.status
			}
		})
	}
	full := eventually(ctx, func() bool { return m.v1.seen(check).count == limit })
	overCtx, cancel := context.WithTimeout(ctx, time.Second)
	over, err := m.client.send(overCtx, check, reviewsURL+"/limited", "")
	cancel()
	arrived := m.v1.seen(check).count
	m.v1.release()
	wg.Wait()
	if err != nil {
		return "", false, err
	}
	// The limit counts what runs; it lets go when that is done.
	var after *answer
	done := make(chan struct{})
	go func() {
		defer close(done)
		after, err = m.client.send(ctx, check+" after", reviewsURL+"/limited", "")
	}()
	if eventually(ctx, func() bool { return m.v1.seen(check+" after").count == 1 }) {
		m.v1.release()
	}
	<-done
	if err != nil {
		return "", false, err
	}
	ok := full && arrived == limit && held == [limit]int{200, 200, 200} && over.status == http.StatusServiceUnavailable &&
		over.header.Get("x-flags") == "UO" && after.status == http.StatusOK
	return fmt.Sprintf("%v, %d %s, then %d", held, over.status, over.header.Get("x-flags"), after.status), ok, nil
}

func checkIdentity(ctx context.Context, m *mesh, check string) (string, bool, error) {
	a, err := m.stranger.send(ctx, check, reviewsURL+"/", "")
	if err != nil {
		return "", false, err
	}
	n := m.v1.seen(check).count + m.v2.seen(check).count
	return fmt.Sprintf("%d %s; %d reached the app", a.status, a.body, n), a.status == http.StatusForbidden && a.body == "RBAC: access denied" && n == 0, nil
}

func checkRego(ctx context.Context, m *mesh, check string) (string, bool, error) {
	bad, err := m.client.send(ctx, check, reviewsURL+"/", `{"rating": 11}`)
	if err != nil {
		return "", false, err
	}
	n := m.v1.seen(check).count + m.v2.seen(check).count
	good, err := m.client.send(ctx, check, reviewsURL+"/", `{"rating": 4}`)
	if err != nil {
		return "", false, err
	}
	ok := bad.status == http.StatusUnprocessableEntity && bad.body == "a rating is a number from 1 to 5" && n == 0 && good.status == http.StatusOK
	return fmt.Sprintf("%d %s; %d", bad.status, bad.body, good.status), ok, nil
}

func checkCard(ctx context.Context, m *mesh, check string) (string, bool, error) {
	const sent, want = `{"card": "4111 1111 1111 1111", "amount": 12}`, `{"card": "**** **** **** 1111", "amount": 12}`
	a, err := m.client.send(ctx, check, "http://api.bank.example/pay", sent)
	if err != nil {
		return "", false, err
	}
	got, how := m.bank.last()
	if a.status != http.StatusOK || got != want {
		return fmt.Sprintf("%d %s; the bank got %s", a.status, a.body, got), false, nil
	}
	return "**** **** **** 1111, " + how, how == "TLS 1.3 to api.bank.example", nil
}

// eventually waits until ok, for five seconds at most.
func eventually(ctx context.Context, ok func() bool) bool {
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if ok() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
	return ok()
}
