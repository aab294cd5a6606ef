package jwtauthn

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// signOther signs with a key that is in no set.
func signOther() func(signed []byte) []byte {
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return func(signed []byte) []byte {
		h := sha256.Sum256(signed)
		r, s, err := ecdsa.Sign(rand.Reader, k, h[:])
		if err != nil {
			panic(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
}

func TestATokenCannotSayByWhichKeyItIsVerified(t *testing.T) {
	other := signOther()
	for name, header := range map[string]string{
		"jku":              `{"alg":"ES256","kid":"ec","jku":"https://evil.example/keys"}`,
		"x5u":              `{"alg":"ES256","kid":"ec","x5u":"https://evil.example/cert"}`,
		"x5c":              `{"alg":"ES256","kid":"ec","x5c":["MIIB"]}`,
		"x5t":              `{"alg":"ES256","x5t":"AAAA"}`,
		"jwk":              `{"alg":"ES256","jwk":` + ecJWK("ec") + `}`,
		"a kid with NUL":   `{"alg":"ES256","kid":"ec\u0000"}`,
		"an empty kid":     `{"alg":"ES256","kid":""}`,
		"a kid of 50 KB":   `{"alg":"ES256","kid":"` + strings.Repeat("k", 50<<10) + `"}`,
		"a kid of 1 MB":    `{"alg":"ES256","kid":"` + strings.Repeat("k", 1<<20) + `"}`,
		"two kids":         `{"alg":"ES256","kid":"ec","kid":"ec"}`,
		"kid as SQL":       `{"alg":"ES256","kid":"x' OR '1'='1"}`,
		"kid up the files": `{"alg":"ES256","kid":"../../../../dev/null"}`,
	} {
		if st := check(t, provider1(t), signRaw(header, claims(nil), other)); st == ok {
			t.Errorf("%s: accepted", name)
		}
	}
	// Two keys of one name are both tried.
	set, _, err := parseKeys([]byte(`{"keys":[` + strings.Replace(rsaJWK("rsa"), `"rsa"`, `"ec"`, 1) + `,` + ecJWK("ec") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	p := provider1(t)
	p.Keys = set
	if st := check(t, p, token1(nil)); st != ok {
		t.Errorf("two keys of one name: %s", st)
	}
}

func TestTheClockSkewIsTheConfiguredOne(t *testing.T) {
	now := time.Now()
	at := func(d int64) int64 { return now.Unix() + d }
	for _, tc := range []struct {
		name, more string
		change     map[string]any
		want       status
	}{
		{"a minute by default: expired", "", map[string]any{"exp": at(-60)}, ok},
		{"a minute by default: a second more", "", map[string]any{"exp": at(-61)}, expired},
		{"a minute by default: not yet", "", map[string]any{"nbf": at(60)}, ok},
		{"a minute by default: a second too early", "", map[string]any{"nbf": at(61)}, notYetValid},
		{"five seconds: expired", `,"clockSkewSeconds":5`, map[string]any{"exp": at(-5)}, ok},
		{"five seconds: a second more", `,"clockSkewSeconds":5`, map[string]any{"exp": at(-6)}, expired},
		{"five seconds: a second too early", `,"clockSkewSeconds":5`, map[string]any{"nbf": at(6)}, notYetValid},
		{"zero is the default", `,"clockSkewSeconds":0`, map[string]any{"exp": at(-60)}, ok},
		{"a lifetime that is allowed", `,"maxLifetime":"100s"`, map[string]any{"iat": at(0), "exp": at(100)}, ok},
		{"a longer lifetime", `,"maxLifetime":"100s"`, map[string]any{"iat": at(0), "exp": at(101)}, lifetimeNotAllowed},
		{"no end, although one is required", `,"requireExpiration":true`, map[string]any{"exp": nil}, lifetimeNotAllowed},
		{"a subject that is allowed", `,"subjects":{"prefix":"al"}`, nil, ok},
		{"another subject", `,"subjects":{"exact":"al"}`, nil, subjectNotAllowed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := compile(t, strict(tc.more), "", nil).(*filter).providers[0]
			if _, st := p.check(nil, token1(tc.change), nil, now, nil, nil, true); st != tc.want {
				t.Errorf("got %q", st)
			}
		})
	}
}

func TestNoPlaceHidesABadToken(t *testing.T) {
	f := compile(t, strict(`,"fromHeaders":[{"name":"authorization","valuePrefix":"Bearer "},{"name":"x-jwt"}],"fromParams":["tok","t2"],"fromCookies":["c","d"]`), "", nil)
	good, bad := token1(nil), token1(map[string]any{"exp": 1})
	for name, tc := range map[string]struct {
		path    string
		headers []string
		status  int
	}{
		"good, all places":            {"/?tok=" + good + "&t2=" + good, []string{"authorization", "Bearer " + good, "x-jwt", good, "cookie", "c=" + good + "; d=" + good}, 200},
		"header good, cookie bad":     {"/", []string{"authorization", "Bearer " + good, "cookie", "c=" + bad}, 401},
		"cookie good, header bad":     {"/", []string{"authorization", "Bearer " + bad, "cookie", "c=" + good}, 401},
		"one cookie good, one bad":    {"/", []string{"cookie", "c=" + good + "; d=" + bad}, 401},
		"the same cookie twice":       {"/", []string{"cookie", "c=" + good + "; c=" + bad}, 401},
		"two cookie fields":           {"/", []string{"cookie", "c=" + good, "+cookie", "c=" + bad}, 401},
		"query good, other query bad": {"/?tok=" + good + "&t2=" + bad, nil, 401},
		"another header bad":          {"/", []string{"authorization", "Bearer " + good, "x-jwt", bad}, 401},
		"the same header twice":       {"/", []string{"x-jwt", good, "+x-jwt", bad}, 401},
		"an empty token beside":       {"/?tok=", []string{"x-jwt", good}, 401},
	} {
		if _, r, _ := run(t, f, tc.path, tc.headers...); r.Status() != tc.status {
			t.Errorf("%s: %d %s", name, r.Status(), body(r))
		}
	}
}

func TestStrangePayloadsAreRefusedQuickly(t *testing.T) {
	const base = `"iss":"https://issuer.example.com","aud":"aud1"`
	for name, payload := range map[string]string{
		"nested 10000 deep":        `{` + base + `,"x":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`,
		"objects 7000 deep":        `{` + base + `,"x":` + strings.Repeat(`{"a":`, 7000) + "1" + strings.Repeat("}", 7000) + `}`,
		"a NUL":                    "{" + base + ",\"x\":\"\x00\"}",
		"a byte order mark":        "\ufeff{" + base + "}",
		"an end that is missing":   `{` + base,
		"a second object":          `{` + base + `}{}`,
		"duplicate keys":           `{` + base + `,"a":1,"a":1}`,
		"duplicate keys, deeper":   `{` + base + `,"x":{"a":1,"a":1}}`,
		"an escaped duplicate key": `{` + base + `,"\u0069ss":"evil"}`,
		"a number that is none":    `{` + base + `,"exp":1e400}`,
		"empty":                    ``,
	} {
		text := signRaw(`{"alg":"ES256"}`, payload, signEC)
		p, best := provider1(t), time.Hour
		for n := 0; n < 100 && best > 5*time.Millisecond; n++ { // a busy machine may spoil an attempt
			start := time.Now()
			if st := check(t, p, text); st != payloadBadJSON {
				t.Fatalf("%s: %q", name, st)
			}
			best = min(best, time.Since(start))
		}
		if best > 5*time.Millisecond {
			t.Errorf("%s: refused after %v", name, best)
		}
	}
}

func TestClaimsThatAreNoHeaderAreLeftOut(t *testing.T) {
	const more = `,"claimToHeaders":[{"headerName":"x-c","claimName":"c"}]`
	for name, tc := range map[string]struct {
		claim any
		want  string
	}{
		"text": {"v", "v"}, "20 KB": {strings.Repeat("x", 20<<10), ""}, "a list of 20 KB": {[]string{strings.Repeat("x", 20<<10)}, ""},
		"line breaks": {"a\r\nx-admin: 1", ""}, "a NUL": {"a\x00", ""}, "empty": {"", ""}, "a number": {7, "7"}, "a fraction": {1.5, "1.500000"},
		"a truth": {true, "true"}, "a list": {[]int{1}, "WzFd"}, "an object": {map[string]int{"a": 1}, "eyJhIjoxfQ=="}, "null": {rawNull{}, ""},
	} {
		_, r, u := run(t, compile(t, strict(more), "", nil), "/", "authorization", "Bearer "+token1(map[string]any{"c": tc.claim}), "x-c", "spoofed", "+x-c", "again")
		if got := u.seen.Get("x-c"); r.Status() != 200 || got != tc.want || u.seen.Count("x-c") != min(len(tc.want), 1) {
			t.Errorf("%s: %d, %q (%d times)", name, r.Status(), got, u.seen.Count("x-c"))
		}
	}
}

type rawNull struct{}

func (rawNull) MarshalJSON() ([]byte, error) { return []byte("null"), nil }

// keysAre answers every fetch with what answer says now.
type keysAre struct {
	answer func() (*filters.CalloutResponse, error)
}

func (k *keysAre) RoundTrip(_ context.Context, _ string, _ *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	r, err := k.answer()
	if err == nil && int64(len(r.Body)) > limit {
		return nil, errors.New("the answer is too large")
	}
	return r, err
}

func status200(body string) func() (*filters.CalloutResponse, error) {
	return func() (*filters.CalloutResponse, error) {
		return &filters.CalloutResponse{Status: 200, Body: []byte(body)}, nil
	}
}

func TestKeysThatCannotBeFetchedVerifyNothing(t *testing.T) {
	redirect := func() (*filters.CalloutResponse, error) {
		r := &filters.CalloutResponse{Status: 302, Body: []byte(jwks())}
		r.Header.Add(message.Status, "302")
		r.Header.Add("location", "http://169.254.169.254/keys")
		return r, nil
	}
	for name, fault := range map[string]func() (*filters.CalloutResponse, error){
		"500": func() (*filters.CalloutResponse, error) {
			return &filters.CalloutResponse{Status: 500, Body: []byte(jwks())}, nil
		},
		"204":          func() (*filters.CalloutResponse, error) { return &filters.CalloutResponse{Status: 204}, nil },
		"a timeout":    func() (*filters.CalloutResponse, error) { return nil, context.DeadlineExceeded },
		"a redirect":   redirect,
		"nothing":      status200(""),
		"garbage":      status200("<html>"),
		"no list":      status200(`{"keys":{}}`),
		"an empty set": status200(`{"keys":[]}`),
		"10 MB":        status200(`{"keys":[` + ecJWK("ec") + `],"x":"` + strings.Repeat("x", 10<<20) + `"}`),
		"300 keys":     status200(`{"keys":[` + strings.Repeat(ecJWK("ec")+",", 300) + ecJWK("ec") + `]}`),
		"secrets":      status200(`{"keys":[{"kty":"oct","k":"AAAA"}]}`),
		"placeholder":  status200(`{"keys":[{"kty":"RSA","e":"AQAB","n":"0xObjM0UvS_oaazjpEYlAbwctEJ4L8pH3OuTb7qth7gUwqet-EzQB4dgFdvSdMgrLnSncQGRjpEYz3F3viIbH-3EN3TxSlPNviHxeOdyiBVfumN8dMxbLvVJUpfNOnvmMxJcl-8NNjAwcOjk4otSALaYgYYyOPyvKtgVdrQr-FoubWX4yrjxW-MJ2-7OBeepUUNOsVwGV23YX03sVkkyvY3otRflkBcY3_HKpBxJl9wk2GyOShN4_PNUF9-vwfnvOXMbCDX-w4PTef4geeb_GiT40YCKHTKMSPVanGRn5GExIWmki-mmqh94-mPTJyBR74ShspL3BxPZitDL574T1w"}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &keysAre{fault}
				f := compile(t, remotely(""), "", &filters.Env{Upstreams: k})
				defer func() { _ = f.(io.Closer).Close() }()
				get := asks(t, f)
				if got := get(); got == "200" {
					t.Fatal("a token is good without keys")
				}
				k.answer = status200(jwks())
				time.Sleep(retryAfter)
				if got := get(); got != "200" {
					t.Fatalf("with keys: %s", got)
				}
				k.answer = fault
				time.Sleep(50 * time.Second)
				if got := get(); got != "200" {
					t.Errorf("within cache_duration: %s", got)
				}
				time.Sleep(time.Minute)
				if got := get(); got == "200" {
					t.Error("expired keys verify")
				}
			})
		})
	}
}

// Keys are exchanged under 1,000 requests a second, half of them with the
// token of the next key.
func TestARotationOfKeysRefusesNothingGoodAndKeepsNothingBad(t *testing.T) {
	old := token1(map[string]any{"exp": nil})
	next := signRaw(`{"alg":"RS256","kid":"rsa"}`, claims(map[string]any{"exp": nil}), signRSA)
	perSecond := 1000
	if testing.Short() {
		perSecond = 100
	}
	synctest.Test(t, func(t *testing.T) {
		k := &keysAre{status200(`{"keys":[` + ecJWK("ec") + `]}`)}
		f := compile(t, remotely(`,"asyncFetch":{}`), "", &filters.Env{Upstreams: k})
		defer func() { _ = f.(io.Closer).Close() }()
		time.Sleep(time.Second)
		for second := range 200 {
			switch second {
			case 30: // both are good
				k.answer = status200(`{"keys":[` + ecJWK("ec") + `,` + rsaJWK("rsa") + `]}`)
			case 120:
				k.answer = status200(`{"keys":[` + rsaJWK("rsa") + `]}`)
			}
			for i := range perSecond {
				tok, good, bad := old, second < 120, second >= 180
				if i%2 == 1 {
					tok, good, bad = next, second >= 90, second < 30
				}
				_, r, _ := run(t, f, "/", "authorization", "Bearer "+tok)
				if good && r.Status() != 200 || bad && r.Status() == 200 {
					t.Fatalf("second %d, request %d: %d %s", second, i, r.Status(), body(r))
				}
				time.Sleep(time.Second / time.Duration(perSecond))
			}
		}
	})
}

// trailed is a body of trailers only.
type trailed struct {
	message.Body
	trailers *message.Header
}

func (b *trailed) Next() ([]byte, bool, error) { return nil, true, nil }
func (b *trailed) Trailers() *message.Header   { return b.trailers }

// stoppable is a body that can be interrupted.
type stoppable struct {
	trailed
	cause error
}

func (b *stoppable) Interrupt(cause error) { b.cause = cause }

// What ends a request early ends its body, and not the whole stream for want of
// a way to do so.
func TestTheBodyCanBeInterruptedBehindTheFilter(t *testing.T) {
	f := compile(t, strict(`,"claimToHeaders":[{"headerName":"x-jwt-sub","claimName":"sub"}]`), "", nil)
	s := asking("Bearer " + token1(nil))
	in, cause := &stoppable{trailed: trailed{message.NoBody, nil}}, errors.New("over")
	s.Body = in
	s.SetChain([]filters.HTTPFilter{f, &upstream{}})
	if r, err := filters.Start(s); err != nil || r.Status() != 200 {
		t.Fatal(err)
	}
	i, ok := s.Body.(filters.Interrupter)
	if !ok {
		t.Fatal("the filter's body can't be interrupted")
	}
	if i.Interrupt(cause); !errors.Is(in.cause, cause) {
		t.Errorf("the body heard %v", in.cause)
	}
}

func TestNoSpellingOfAClaimHeaderIsTheClients(t *testing.T) {
	f := compile(t, strict(`,"forwardPayloadHeader":"x-jwt-payload","claimToHeaders":[{"headerName":"x-jwt-sub","claimName":"sub"},{"headerName":"x-jwt-none","claimName":"none"}]`), "", nil)
	s := asking("Bearer " + token1(nil))
	names := []string{"x-jwt-sub", "x_jwt_sub", "x-jwt_sub", "x_jwt-sub", "x-jwt-payload", "x_jwt_payload", "x-jwt-none", "x_jwt_none"}
	trailers := &message.Header{}
	for _, n := range append(names, "x-other") {
		s.Request.Add(n, "spoofed")
		s.Request.Add(n, "again")
		trailers.Add(n, "late")
	}
	s.Body = &trailed{message.NoBody, trailers}
	u := &upstream{}
	s.SetChain([]filters.HTTPFilter{f, u})
	if r, err := filters.Start(s); err != nil || r.Status() != 200 {
		t.Fatal(err)
	}
	for _, n := range names {
		want := map[string]int{"x-jwt-sub": 1, "x-jwt-payload": 1}[n]
		if u.seen.Count(n) != want || u.seen.Get(n) == "spoofed" {
			t.Errorf("%s: %d of %q", n, u.seen.Count(n), u.seen.Get(n))
		}
	}
	if got := s.Body.Trailers(); u.seen.Count("x-other") != 2 || got.Len() != 1 || !got.Has("x-other") {
		t.Errorf("trailers %v", got)
	}
}
