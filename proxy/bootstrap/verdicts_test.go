package bootstrap

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// differs lists the cases where our verdict is another one than Envoy's, with
// the reason.
var differs = map[string]string{
	"format unknown operator":   "the route is closed: the operator may be one that is not supported here",
	"format percent":            "the route is closed",
	"tcp_proxy tunnel bad host": "the filter chain is closed",
	"access log bad format":     "the log is not written, and that is reported",
	"cipher unknown":            "handshakes fail: the suite may be one that crypto/tls lacks",
	"per route wrong type":      "the route is closed",
	"internal listener":         "internal listeners need no bootstrap extension",
}

// TestVerdictsAgreeWithEnvoy compares with what Envoy 1.40 --mode validate
// says of the same bootstrap.
func TestVerdictsAgreeWithEnvoy(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "verdicts.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name   string
		Accept bool
		Envoy  string
		Config json.RawMessage
	}
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) != 114 {
		t.Errorf("%d cases", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.Name, func(t *testing.T) {
			_, err := Parse(tc.Config, decoder())
			why, known := differs[tc.Name]
			switch agree := (err == nil) == tc.Accept; {
			case agree && known:
				t.Errorf("agrees, although listed as different: %s", why)
			case !agree && !known:
				t.Errorf("Envoy accepts: %v (%s); we say: %v", tc.Accept, tc.Envoy, err)
			}
		})
	}
}
