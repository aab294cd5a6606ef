package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// explainFlags are those of the command.
type explainFlags struct {
	file, admin, output string
	q                   explain.Request
	response            explain.Response
}

func explainCommand() *cobra.Command {
	f := &explainFlags{}
	c := &cobra.Command{
		Use:   "explain (--config FILE | --admin ADDRESS) [URL]",
		Short: "Say what would happen to a request, and why",
		Long: "explain asks a configuration file, or a running proxy, what it would do with a request: which filter\n" +
			"chain and route it takes, what every filter and policy says, which rule came closest if it is denied, and\n" +
			"where it would go. Nothing is sent. URL sets destination, host, scheme and path in one.",
		Example: "  fairlead explain --config waypoint.yaml --source spiffe://cluster.local/ns/app/sa/client --destination 10.96.0.10:9080 --path /reviews\n" +
			"  fairlead explain --admin 127.0.0.1:15000 --source spiffe://cluster.local/ns/app/sa/client http://reviews.app.svc.cluster.local:9080/reviews",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	fs := c.Flags()
	fs.StringVarP(&f.file, "config", "c", "", "Envoy v3 bootstrap file, YAML or JSON")
	fs.StringVar(&f.admin, "admin", "", "admin address of a running proxy")
	fs.StringVarP(&f.output, "output", "o", "text", "text or json")
	fs.StringVar(&f.q.Listener, "listener", "", "listener that the request arrives at; found by destination otherwise")
	fs.StringVarP(&f.q.Source.Identity, "source", "s", "", "SPIFFE ID in the client's certificate")
	fs.StringVar(&f.q.Source.Address, "source-address", "", "IP address of the client")
	fs.StringVarP(&f.q.Destination, "destination", "d", "", "ip:port or name:port that the client connects to")
	fs.StringVarP(&f.q.Method, "method", "X", "", "method, GET by default")
	fs.StringVarP(&f.q.Path, "path", "p", "", "path and query, / by default")
	fs.StringVar(&f.q.Host, "host", "", "Host or :authority, the destination by default")
	fs.StringVar(&f.q.Scheme, "scheme", "", "http or https")
	fs.StringArrayVarP(&f.q.Headers, "header", "H", nil, `header "name: value"; may be repeated`)
	fs.StringArrayVar(&f.q.ConnectHeaders, "connect-header", nil, `header "name: value" of the CONNECT request of the tunnel (HBONE); may be repeated`)
	fs.StringVar(&f.q.Body, "data", "", "body of the request")
	fs.IntVar(&f.response.Status, "response-status", 0, "status of a response that inspection is asked about, too, 200 by default")
	fs.StringArrayVar(&f.response.Headers, "response-header", nil, `header "name: value" of that response; may be repeated`)
	fs.StringVar(&f.response.Body, "response-body", "", "body of that response")
	fs.StringVar(&f.q.SNI, "sni", "", "server name of the TLS handshake, the host by default")
	fs.BoolVar(&f.q.HTTP1, "http1.1", false, "ask as an HTTP/1.1 client")
	fs.Uint64Var(&f.q.Random, "random", 0, "number that decides about weights and percentages; 0 takes the first choice")
	return c
}

func (f *explainFlags) run(cmd *cobra.Command, args []string) error {
	if (f.file == "") == (f.admin == "") {
		return errors.New("explain: give either a file (--config) or the admin address of a running proxy (--admin)")
	}
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("explain: --output: %q is neither text nor json", f.output)
	}
	if len(args) == 1 {
		if err := f.url(args[0]); err != nil {
			return err
		}
	}
	if f.response.Status != 0 || f.response.Body != "" || len(f.response.Headers) > 0 {
		f.q.Response = &f.response
	}
	r, err := f.ask(cmd)
	if err != nil {
		return err
	}
	if f.output == "text" {
		return r.WriteText(cmd.OutOrStdout())
	}
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// url fills in what a URL says and no flag has said.
func (f *explainFlags) url(arg string) error {
	u, err := url.Parse(arg)
	if err != nil || u.Host == "" {
		return fmt.Errorf("explain: %q is not a URL with a host", arg)
	}
	set := func(at *string, v string) {
		if *at == "" {
			*at = v
		}
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	set(&f.q.Scheme, u.Scheme)
	set(&f.q.Host, u.Host)
	set(&f.q.Path, u.RequestURI())
	dest := u.Hostname()
	if strings.Contains(dest, ":") {
		dest = "[" + dest + "]"
	}
	if port != "" {
		dest += ":" + port
	}
	set(&f.q.Destination, dest)
	return nil
}

func (f *explainFlags) ask(cmd *cobra.Command) (*explain.Report, error) {
	if f.admin != "" {
		return f.askAdmin(cmd)
	}
	doc, err := proxy.ReadFile(f.file)
	if err != nil {
		return nil, err
	}
	r, err := proxy.ExplainBootstrap(doc, proxy.ProcessOptions{Registry: builtin.Registry(), Version: version}, &f.q)
	return r, inFile(f.file, err)
}

func (f *explainFlags) askAdmin(cmd *cobra.Command) (*explain.Report, error) {
	body, err := json.Marshal(&f.q)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	base := strings.TrimSuffix(f.admin, "/")
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodPost, base+"/debug/explain", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	c := &http.Client{Timeout: 10 * time.Second}
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("explain: %w (is the proxy running, and is %s its admin address?)", err, f.admin)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(strings.TrimSpace(string(b)))
	}
	r := &explain.Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("explain: %s does not answer as a proxy of this version: %w", f.admin, err)
	}
	return r, nil
}
