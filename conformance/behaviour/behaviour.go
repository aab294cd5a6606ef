// Package behaviour runs a corpus of HTTP exchanges through a proxy that
// reads an Envoy bootstrap, and compares what the origin servers and the
// client saw with what the corpus says. The corpus was written from what
// Envoy 1.40 does, so it can be run against Envoy and Fairlead alike.
//
// The format of a file is described in README.md.
package behaviour

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"golang.org/x/tools/txtar"
)

// Suite is one file of the corpus: a bootstrap and the exchanges that are run
// against one proxy process started with it.
type Suite struct {
	// Path is the file the suite was read from, Area its folder's name.
	Path, Area string
	// Comment says what the cases show; it is never empty.
	Comment string
	// Bootstrap is the template of the proxy's configuration.
	Bootstrap string
	// Show holds lower case names of response headers that are compared in
	// this suite though they are left out by default.
	Show map[string]bool
	// Quiet says that the proxy is not connected to before the first case, for
	// connections are logged.
	Quiet bool
	// Cases are run in order, one at a time.
	Cases []*Case

	comment []byte       // Comment as it was written
	head    []txtar.File // sections before the first request
}

// Case is one request (or several on one connection) and what is to be seen.
type Case struct {
	// Name is unique in its suite.
	Name string
	// Request is what the client sends; its texts are templates.
	Request []Chunk
	// Streams are those of a request of HTTP/2, nil if it is none.
	Streams []uint32
	// Origins are the scripts of the first and the second origin server.
	Origins [2][]Answer
	// Verdicts is the script of the authorization server.
	Verdicts []Verdict
	// Client says how the client reads.
	Client ClientOptions
	// Want is what Envoy does.
	Want Seen
	// Differs is one line saying why Fairlead differs, or empty.
	Differs string
	// Differing is what Fairlead does when Differs is set; a nil field means
	// the same as Want.
	Differing Override

	sections []txtar.File
}

// Chunk is bytes the client sends, after waiting for Pause.
type Chunk struct {
	Pause time.Duration
	Data  string
}

// ClientOptions are the lines of a client section.
type ClientOptions struct {
	// Responses is how many final responses are read; at least 1.
	Responses int
	// Settle is how long to wait before what the origins saw is read.
	Settle time.Duration
	// HangUp is when the client ends the connection, 0 for after the responses.
	HangUp time.Duration
}

// Seen is what was seen on the sides of an exchange, in canonical text.
type Seen struct {
	Upstream, Authz, Client, Log string
}

// Override replaces parts of a [Seen].
type Override struct {
	Upstream, Authz, Client, Log *string
}

// Fairlead returns what Fairlead is to do in c.
func (c *Case) Fairlead() Seen {
	s := c.Want
	for _, o := range []struct {
		dst *string
		src *string
	}{{&s.Upstream, c.Differing.Upstream}, {&s.Authz, c.Differing.Authz}, {&s.Client, c.Differing.Client}, {&s.Log, c.Differing.Log}} {
		if o.src != nil {
			*o.dst = *o.src
		}
	}
	return s
}

// Load reads every suite below dir, sorted by path.
func Load(dir string) ([]*Suite, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "*.txtar"))
	if err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var suites []*Suite
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		s, err := Parse(p, data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		suites = append(suites, s)
	}
	return suites, nil
}

// Parse reads one file of the corpus. Wants may be missing; [Suite.Check]
// reports that.
func Parse(path string, data []byte) (*Suite, error) {
	if bytes.IndexByte(data, '\r') >= 0 {
		return nil, errors.New("a carriage return: write \\r in a request.raw section")
	}
	ar := txtar.Parse(data)
	s := &Suite{
		Path: path, Area: filepath.Base(filepath.Dir(path)),
		Comment: strings.TrimSpace(string(ar.Comment)), Show: map[string]bool{}, comment: ar.Comment,
	}
	var origins [2][]Answer
	var verdicts []Verdict
	var cur *Case
	for _, f := range ar.Files {
		text := string(f.Data)
		kind, name, _ := strings.Cut(f.Name, " ")
		var err error
		switch {
		case kind == "request.h2":
			cur = &Case{Name: strings.TrimSpace(name), Origins: origins, Verdicts: verdicts, Client: ClientOptions{Responses: 1}}
			cur.Request, cur.Streams, err = parseH2(text)
			s.Cases = append(s.Cases, cur)
		case kind == "request" || kind == "request.raw":
			cur = &Case{Name: strings.TrimSpace(name), Origins: origins, Verdicts: verdicts, Client: ClientOptions{Responses: 1}}
			cur.Request, err = parseRequest(kind == "request.raw", text)
			s.Cases = append(s.Cases, cur)
		case cur == nil && kind == "bootstrap.yaml":
			s.Bootstrap = text
		case cur == nil && kind == "options":
			err = s.options(text)
		case cur == nil && kind == "origin":
			origins[0], err = parseAnswers(text)
		case cur == nil && kind == "origin2":
			origins[1], err = parseAnswers(text)
		case cur == nil && kind == "authz":
			verdicts, err = parseVerdicts(text)
		case cur == nil:
			err = errors.New("not a section that may come before the first request")
		default:
			err = cur.section(kind, text)
		}
		if err != nil {
			return nil, fmt.Errorf("section %q: %w", f.Name, err)
		}
		if cur == nil {
			s.head = append(s.head, f)
		} else {
			cur.sections = append(cur.sections, f)
		}
	}
	return s, nil
}

func (s *Suite) options(text string) error {
	for line := range strings.Lines(text) {
		key, val, _ := strings.Cut(strings.TrimSpace(line), " ")
		if key == "quiet" && val == "" {
			s.Quiet = true
			continue
		}
		if key != "show" || val == "" {
			return fmt.Errorf("%q is not an option: \"show HEADER\" and \"quiet\" are", line)
		}
		s.Show[strings.ToLower(val)] = true
	}
	return nil
}

func (c *Case) section(kind, text string) (err error) {
	switch kind {
	case "origin":
		c.Origins[0], err = parseAnswers(text)
	case "origin2":
		c.Origins[1], err = parseAnswers(text)
	case "authz":
		c.Verdicts, err = parseVerdicts(text)
	case "client":
		err = c.clientOptions(text)
	case "want.upstream":
		c.Want.Upstream = text
	case "want.authz":
		c.Want.Authz = text
	case "want.client":
		c.Want.Client = text
	case "want.log":
		c.Want.Log = text
	case "differs":
		c.Differs = strings.TrimSpace(text)
		if c.Differs == "" || strings.Contains(c.Differs, "\n") {
			err = errors.New("want one line that says why Fairlead differs")
		}
	case "differs.upstream":
		c.Differing.Upstream = &text
	case "differs.authz":
		c.Differing.Authz = &text
	case "differs.client":
		c.Differing.Client = &text
	case "differs.log":
		c.Differing.Log = &text
	default:
		err = errors.New("not a section of a case")
	}
	return err
}

func (c *Case) clientOptions(text string) (err error) {
	for line := range strings.Lines(text) {
		key, val, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "responses":
			c.Client.Responses, err = strconv.Atoi(val)
		case "settle":
			c.Client.Settle, err = time.ParseDuration(val)
		case "hangup":
			c.Client.HangUp, err = time.ParseDuration(val)
		default:
			err = fmt.Errorf("%q is not an option of a client", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseRequest turns a section into bytes. Lines of a plain section end with
// CRLF and a missing empty line after the headers is added; the end of line
// after the last line of a body is not sent unless the body is chunked. A raw
// section is Go string literals, one a line, and "pause DURATION" lines.
func parseRequest(raw bool, text string) ([]Chunk, error) {
	if !raw {
		head, body, hasBody := strings.Cut(text, "\n\n")
		if !hasBody || body == "" {
			text = strings.TrimRight(head, "\n") + "\n\n"
		} else if !strings.Contains(strings.ToLower(head), "transfer-encoding") {
			text = strings.TrimSuffix(text, "\n")
		}
		return []Chunk{{Data: strings.ReplaceAll(text, "\n", "\r\n")}}, nil
	}
	chunks := []Chunk{{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if d, ok := strings.CutPrefix(line, "pause "); ok {
			pause, err := time.ParseDuration(d)
			if err != nil {
				return nil, err
			}
			chunks = append(chunks, Chunk{Pause: pause})
			continue
		}
		str, err := strconv.Unquote(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		chunks[len(chunks)-1].Data += str
	}
	return chunks, nil
}

// logs reports whether the access log is compared.
func (s *Suite) logs() bool { return strings.Contains(s.Bootstrap, "{{.Log}}") }

// asks tells whether there is an authorization server.
func (s *Suite) asks() bool { return strings.Contains(s.Bootstrap, "{{.Authz}}") }

// Check reports what is missing in s for it to be a suite of the corpus.
func (s *Suite) Check() error {
	var errs []error
	if s.Comment == "" {
		errs = append(errs, errors.New("no comment says what the cases show"))
	}
	if !strings.Contains(s.Bootstrap, "{{.Port}}") {
		errs = append(errs, errors.New("bootstrap.yaml is missing or has no {{.Port}}"))
	}
	names := map[string]bool{}
	for _, c := range s.Cases {
		switch {
		case c.Name == "" || names[c.Name]:
			errs = append(errs, fmt.Errorf("case %q: a name must be there and unique", c.Name))
		case c.Want.Upstream == "" || c.Want.Client == "" || s.logs() != (c.Want.Log != "") || s.asks() != (c.Want.Authz != ""):
			errs = append(errs, fmt.Errorf("case %q: wants are missing; write them with -update-from-envoy", c.Name))
		case (c.Differs != "") != (c.Differing != Override{}):
			errs = append(errs, fmt.Errorf("case %q: differs and its wants come together", c.Name))
		}
		names[c.Name] = true
	}
	return errors.Join(errs...)
}

// Format returns the file of s with the current wants.
func (s *Suite) Format() []byte {
	ar := &txtar.Archive{Comment: s.comment, Files: slices.Clone(s.head)}
	for _, c := range s.Cases {
		var after []txtar.File
		for _, f := range c.sections {
			switch {
			case strings.HasPrefix(f.Name, "want."):
			case strings.HasPrefix(f.Name, "differs"):
				after = append(after, f)
			default:
				ar.Files = append(ar.Files, f)
			}
		}
		for _, w := range [][2]string{{"want.upstream", c.Want.Upstream}, {"want.authz", c.Want.Authz}, {"want.client", c.Want.Client}, {"want.log", c.Want.Log}} {
			if w[1] != "" {
				ar.Files = append(ar.Files, txtar.File{Name: w[0], Data: []byte(w[1])})
			}
		}
		ar.Files = append(ar.Files, after...)
	}
	return txtar.Format(ar)
}

// Places are the values of the placeholders of a suite.
type Places struct {
	// Port is the listener's, Origin and Origin2 the origin servers', Authz the
	// authorization server's, Dead a port of loopback that refuses connections,
	// and Admin one that is free for the admin interface.
	Port, Origin, Origin2, Authz, Dead, Admin int
	// Log is the path of the access log, Guests the directory of the WebAssembly
	// modules that are made for tests.
	Log, Guests string

	hosts []string // the machine's own addresses
}

// expand executes text as a template over p.
func (p *Places) expand(text string) (string, error) {
	t, err := template.New("").Option("missingkey=error").
		Funcs(template.FuncMap{"repeat": strings.Repeat}).Parse(text)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return "", err
	}
	return b.String(), nil
}

// mask puts the placeholders back where ports are named. Where Envoy names
// its peer in x-forwarded-for and the peer is on loopback, it writes the
// machine's own address; that becomes the loopback address it stands for.
func (p *Places) mask(text string) string {
	for _, host := range p.hosts {
		text = strings.ReplaceAll(text, host, "127.0.0.1")
	}
	ports := map[string]int{"Port": p.Port, "Origin": p.Origin, "Origin2": p.Origin2, "Authz": p.Authz, "Dead": p.Dead, "Admin": p.Admin}
	for _, name := range slices.Sorted(maps.Keys(ports)) {
		text = strings.ReplaceAll(text, ":"+strconv.Itoa(ports[name]), ":{{."+name+"}}")
	}
	return text
}
