package jwtauthn

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// slowKeys is a key server whose answers take a second and can be changed.
type slowKeys struct {
	body    atomic.Pointer[string] // nil: down
	fetches atomic.Int32
	retry   atomic.Pointer[filters.Retry]
}

func (k *slowKeys) set(body string) { k.body.Store(&body) }

func (k *slowKeys) RoundTrip(ctx context.Context, _ string, req *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	k.fetches.Add(1)
	k.retry.Store(req.Retry)
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	b := k.body.Load()
	if b == nil {
		return nil, errors.New("down")
	}
	return &filters.CalloutResponse{Status: 200, Body: []byte(*b)}, nil
}

// remotely configures keys of slowKeys, for a minute.
func remotely(more string) string {
	return strings.Replace(strict(""), `"localJwks":{"inlineString":`+quote(jwks())+`}`,
		`"remoteJwks":{"httpUri":{"uri":"https://idp.example/keys","cluster":"idp","timeout":"5s"},"cacheDuration":"60s"`+more+`}`, 1)
}

// asks returns a function that sends a good token and tells status or failure.
func asks(t *testing.T, f filters.HTTPFilter) func() string {
	t.Helper()
	long := token1(map[string]any{"exp": nil})
	return func() string {
		_, r, _ := run(t, f, "/", "authorization", "Bearer "+long)
		if r.Status() == 200 {
			return "200"
		}
		return body(r)
	}
}

const notFetched = "Jwks remote fetch is failed"

func TestRemoteKeysAreFetchedBeforeTheyAreNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowKeys{}
		f := compile(t, remotely(`,"asyncFetch":{"failedRefetchDuration":"2s"},"retryPolicy":{"numRetries":3}`), "", &filters.Env{Upstreams: k, Shared: &filters.Shared{}})
		defer func() { _ = f.(io.Closer).Close() }()
		get := asks(t, f)
		time.Sleep(1500 * time.Millisecond)
		if n := k.fetches.Load(); n != 1 {
			t.Fatalf("%d fetches at the start", n)
		}
		if r := k.retry.Load(); r == nil || *r != (filters.Retry{Times: 3, Base: time.Second, Max: 10 * time.Second}) {
			t.Errorf("retry policy %+v", r)
		}
		start := time.Now()
		if got := get(); got != notFetched || time.Since(start) > 0 {
			t.Errorf("after a failure: %s, after %v", got, time.Since(start))
		}
		k.set(jwks())
		time.Sleep(3 * time.Second)
		if got := get(); got != "200" || k.fetches.Load() != 2 || time.Since(start) > 3*time.Second {
			t.Errorf("fetched again: %s, %d fetches", got, k.fetches.Load())
		}
		k.set(`{"keys":[` + rsaJWK("rsa") + `]}`)
		time.Sleep(58 * time.Second)
		start = time.Now()
		if got := get(); !strings.Contains(got, "doesn't have key") || k.fetches.Load() != 3 || time.Since(start) > 0 {
			t.Errorf("refreshed before they expired: %s, %d fetches, after %v", got, k.fetches.Load(), time.Since(start))
		}
		k.set(jwks())
		time.Sleep(60 * time.Second)
		k.body.Store(nil)
		if got := get(); got != "200" {
			t.Errorf("refreshed: %s", got)
		}
		time.Sleep(61 * time.Second)
		if got := get(); got != notFetched {
			t.Errorf("expired keys verify: %s", got)
		}
	})
}

func TestRequestsShareOneFetchAndNoneOwnsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &slowKeys{}
		k.set(jwks())
		f := compile(t, remotely(""), "", &filters.Env{Upstreams: k})
		defer func() { _ = f.(io.Closer).Close() }()
		get := asks(t, f)
		var wg sync.WaitGroup
		wg.Go(func() { // a client that does not wait
			s := &filters.Stream{}
			s.Reset()
			go func() {
				time.Sleep(100 * time.Millisecond)
				s.Interrupt(errors.New("gone"))
			}()
			if _, st := f.(*filter).providers[0].remote.get(s, &token{}); st != fetchFails {
				t.Errorf("the client that went away: %v", st)
			}
		})
		for range 10 {
			wg.Go(func() {
				time.Sleep(50 * time.Millisecond)
				if got := get(); got != "200" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if n := k.fetches.Load(); n != 1 {
			t.Errorf("%d fetches", n)
		}
		time.Sleep(56 * time.Second) // nearly expired
		start := time.Now()
		if got := get(); got != "200" || time.Since(start) > 0 {
			t.Errorf("%s, waited %v for keys that are good", got, time.Since(start))
		}
		time.Sleep(10 * time.Second)
		if got := get(); got != "200" || time.Since(start) > 10*time.Second || k.fetches.Load() != 2 {
			t.Errorf("%s, %d fetches", got, k.fetches.Load())
		}
	})
}

func TestKeysFromAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "jwks.json")
	config := strings.Replace(strict(""), `"inlineString":`+quote(jwks()), `"filename":`+quote(file), 1)
	f := compile(t, config, "", &filters.Env{Shared: &filters.Shared{}})
	defer func() { _ = f.(io.Closer).Close() }()
	get := asks(t, f)
	if got := get(); got == "200" {
		t.Fatal("a token is good without keys")
	}
	write := func(text string) {
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	until := func(what string, ok func(got string) bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(get()); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %s", what, get())
			}
		}
	}
	write(jwks())
	until("written", func(got string) bool { return got == "200" })
	write("garbage")
	time.Sleep(300 * time.Millisecond)
	if got := get(); got != "200" {
		t.Errorf("broken content: %s", got)
	}
	write(`{"keys":[` + rsaJWK("rsa") + `]}`)
	until("other keys", func(got string) bool { return strings.Contains(got, "doesn't have key") })
}

func TestKeysFromTheEnvironment(t *testing.T) {
	config := strings.Replace(strict(""), `"inlineString":`+quote(jwks()), `"environmentVariable":"FAIRLEAD_TEST_JWKS"`, 1)
	c, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Factory{}).Compile(&filters.Env{}, c, nil); err == nil {
		t.Error("without the variable it compiles")
	}
	t.Setenv("FAIRLEAD_TEST_JWKS", jwks())
	if got := asks(t, compile(t, config, "", nil))(); got != "200" {
		t.Error(got)
	}
}
