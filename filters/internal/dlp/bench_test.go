package dlp

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
)

// twentyTypes is the set that throughput is stated for.
var twentyTypes = []string{
	creditCard, usSSN, usITIN, ukNHS, phoneNumber, ibanCode, emailAddress, ipAddress, awsCredentials, "GCP_API_KEY", "GCP_CREDENTIALS",
	"AZURE_AUTH_TOKEN", githubToken, "SLACK_TOKEN", "STRIPE_API_KEY", privateKey, jsonWebToken, genericSecret, deTaxID, usPassport,
}

func cleanText(n int) []byte {
	words := strings.Fields("the of and service request response deployment when value config error return status cluster namespace which policy route is not for with pod id a to in time out code")
	r := rand.New(rand.NewPCG(7, 7))
	var b strings.Builder
	for b.Len() < n {
		if r.IntN(40) == 0 {
			fmt.Fprintf(&b, "%d.%d ", r.IntN(100), r.IntN(10))
		}
		b.WriteString(words[r.IntN(len(words))])
		b.WriteByte(" \n"[btoi(r.IntN(12) == 0)])
	}
	return []byte(b.String()[:n])
}

func cleanJSON(n int) []byte {
	r := rand.New(rand.NewPCG(8, 8))
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, `{"id":%d,"name":"item %d","price":%d.%02d,"created":"2026-03-%02dT%02d:%02d:%02dZ","tags":["a","b"],"ok":true},`+"\n",
			r.IntN(100000), r.IntN(1000), r.IntN(1000), r.IntN(100), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60))
	}
	return []byte(b.String()[:n])
}

func benchScan(b *testing.B, types []string, data []byte) {
	e, err := New(Options{Types: types})
	if err != nil {
		b.Fatal(err)
	}
	s := e.NewScanner(func(Finding, []byte) Edit { return Edit{} })
	defer s.Free()
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		for p := data; len(p) > 0; {
			n := min(16<<10, len(p))
			if _, err := s.Write(p[:n], false); err != nil {
				b.Fatal(err)
			}
			p = p[n:]
		}
	}
}

func BenchmarkScanText(b *testing.B) { benchScan(b, twentyTypes, cleanText(1<<20)) }
func BenchmarkScanJSON(b *testing.B) { benchScan(b, twentyTypes, cleanJSON(1<<20)) }

// naivePatterns are expressions for ten kinds, without validation.
var naivePatterns = []string{
	`\b(?:\d[ -]?){13,19}\b`, `\b\d{3}-\d{2}-\d{4}\b`, `\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b`, `[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-z]{2,}`,
	`\b\d{1,3}(?:\.\d{1,3}){3}\b`, `\bAKIA[A-Z0-9]{16}\b`, `\bAIza[\w-]{35}`, `\bgh[pousr]_\w{36}`, `\beyJ[\w-]+\.[\w-]+\.[\w-]+`, `(?i)(?:password|secret|api_key)\s*[:=]\s*\S{12,}`,
}

// BenchmarkNaiveRegexp is what one expression for each of ten of the types
// costs, without validation.
func BenchmarkNaiveRegexp(b *testing.B) {
	var res []*regexp.Regexp
	for _, p := range naivePatterns {
		res = append(res, regexp.MustCompile(p))
	}
	data := cleanText(1 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for _, re := range res {
			_ = re.FindAllIndex(data, -1)
		}
	}
}

func BenchmarkScanTextWithAll(b *testing.B) { benchScan(b, Builtin(), cleanText(1<<20)) }
func BenchmarkScanJSONWithAll(b *testing.B) { benchScan(b, Builtin(), cleanJSON(1<<20)) }

func BenchmarkCompileAll(b *testing.B) {
	for b.Loop() {
		if _, err := New(Options{Types: Builtin()}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream is what a body costs: the scan, escapes seen through, and a
// copy.
func BenchmarkStream(b *testing.B) {
	for _, types := range []struct {
		name string
		list []string
	}{{"20", twentyTypes}, {"all", Builtin()}} {
		for _, data := range []struct {
			name string
			text []byte
		}{{"text", cleanText(1 << 20)}, {"JSON", cleanJSON(1 << 20)}} {
			b.Run(types.name+" "+data.name, func(b *testing.B) {
				e, err := New(Options{Types: types.list})
				if err != nil {
					b.Fatal(err)
				}
				s := e.NewStream(func(Finding, []byte) Edit { return Edit{} }, false, nil)
				defer s.Free()
				b.SetBytes(int64(len(data.text)))
				b.ReportAllocs()
				for b.Loop() {
					for p := data.text; len(p) > 0; {
						n := min(4<<10, len(p))
						if _, err := s.Write(p[:n], false); err != nil {
							b.Fatal(err)
						}
						p = p[n:]
					}
				}
			})
		}
	}
}
