package dlp

import (
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
)

// one detector: text → what is found, each with a lowest likelihood. A case
// without a match must find nothing at Possible or above.
type detectorCase struct {
	text  string
	match string // "" for none
	low   Likelihood
}

const (
	jwtHead = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
	jwtBody = "eyJzdWIiOiIxMjM0NTY3ODkwIn0"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

var detectorCases = map[string][]detectorCase{
	creditCard: {
		{"4111111111111111", "4111111111111111", Likely},
		{"4111 1111 1111 1111", "4111 1111 1111 1111", Likely},
		{"4111-1111-1111-1111,", "4111-1111-1111-1111", Likely},
		{"3782 822463 10005", "3782 822463 10005", Likely},
		{"6011111111111117", "6011111111111117", Likely},
		{"2223003122003222", "2223003122003222", Likely},
		{"3530111333300000", "3530111333300000", Likely},
		{"diners card 30569309025904", "30569309025904", Likely},
		{"4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", Possible},
		{"card number: 4111111111111111", "4111111111111111", VeryLikely},
		{"77 4111 1111 1111 1111", "4111 1111 1111 1111", Likely},
		{"ref2-4111111111111111", "4111111111111111", Likely},
		{"cardNumber=4111111111111111", "4111111111111111", VeryLikely},
		{"card4111111111111111", "4111111111111111", VeryLikely},
		{"CardNumber4111111111111111.", "4111111111111111", VeryLikely},
		{"x_visa4111-1111-1111-1111", "4111-1111-1111-1111", VeryLikely},
		{"pan5555555555554444exp1227", "5555555555554444", VeryLikely},
		{"4111111111111111CVV123", "4111111111111111", Likely},
		{"cc_4111111111111111_old", "4111111111111111", VeryLikely},
		{"japan4111111111111111", "", 0},
		{"occ4111111111111111", "", 0},
		{"0card4111111111111111", "", 0},
		{"discardedcards4111111111111111", "", 0},
		{"4111111111111111ex", "", 0},
		{"4111111111111111a", "", 0},
		{"trace=4111111111111111", "", 0},
		{"9f41a2c0-7a11-4111-1111-111111111111", "", 0},
		{"e0a9eb9c-5a1c-4c2f-4140-535598928289", "", 0},
		{"4111111111111112", "", 0},
		{"1234567812345670", "", 0},
		{"0.4111111111111111", "", 0},
		{"4111111111111111.5", "", 0},
		{"a4111111111111111", "", 0},
		{"41111111111111111111111", "", 0},
		{"0000 0000 0000 0000", "", 0},
		{"550e8400-e29b-41d4-a716-446655440000", "", 0},
		{"1690000000000000", "", 0},
	},
	ibanCode: {
		{"GB82WEST12345698765432", "GB82WEST12345698765432", VeryLikely},
		{"GB82 WEST 1234 5698 7654 32", "GB82 WEST 1234 5698 7654 32", VeryLikely},
		{"DE89370400440532013000", "DE89370400440532013000", VeryLikely},
		{"FR14 2004 1010 0505 0001 3M02 606", "FR14 2004 1010 0505 0001 3M02 606", VeryLikely},
		{"NL91ABNA0417164300.", "NL91ABNA0417164300", VeryLikely},
		{"iban gb82west12345698765432", "gb82west12345698765432", Likely},
		{"NO93 8601 1117 947", "NO93 8601 1117 947", VeryLikely},
		{"GB82WEST12345698765433", "", 0},
		{"GB82WEST1234569876543", "", 0},
		{"DE893704004405320130001", "", 0},
		{"XX82WEST12345698765432", "", 0},
		{"ab12cd34ef56ab12cd34ef56", "", 0},
		{"XGB82WEST12345698765432", "", 0},
	},
	emailAddress: {
		{"jane@example.com", "jane@example.com", VeryLikely},
		{"<Jane.Doe+tag@mail.example.co.uk>", "Jane.Doe+tag@mail.example.co.uk", Likely},
		{"mail to o'neil@example.org.", "o'neil@example.org", VeryLikely},
		{"a_b-c%d@x-y.io", "a_b-c%d@x-y.io", Likely},
		{"x@sub.domain.xn--p1ai", "x@sub.domain.xn--p1ai", Likely},
		{"'quoted'@example.com", "quoted'@example.com", VeryLikely},
		{"JANE@EXAMPLE.COM", "JANE@EXAMPLE.COM", VeryLikely},
		{"logo@2x.png", "", 0},
		{"i%@d.Xc", "", 0},
		{"G@C.ua", "", 0},
		{"me@host.zq", "", 0},
		{"user@localhost", "", 0},
		{"@example.com", "", 0},
		{"pkg@1.2.3", "", 0},
		{"a@b@c", "", 0},
		{"x.@example.com", "", 0},
		{"x@-bad.com", "", 0},
		{"x@a..com", "", 0},
		{strings.Repeat("a", 65) + "@example.com", "", 0},
	},
	phoneNumber: {
		{"212-555-0187", "212-555-0187", Likely},
		{"(212) 555-0187", "(212) 555-0187", Likely},
		{"(212)5550187", "(212)5550187", Likely},
		{"212.555.0187", "212.555.0187", Likely},
		{"+1 212 555 0187", "+1 212 555 0187", Likely},
		{"1-800-555-0187", "1-800-555-0187", Likely},
		{"+12125550187", "+12125550187", Likely},
		{"+49 30 1234567", "+49 30 1234567", Likely},
		{"+49 (30) 1234567", "+49 (30) 1234567", Likely},
		{"+33 1 23 45 67 89", "+33 1 23 45 67 89", Likely},
		{"+442079460958", "+442079460958", Likely},
		{"tel: 2125550187", "2125550187", Likely},
		{"2125550187", "", 0},
		{"call: true, mask: 2147483631", "", 0},
		{"112-555-0187", "", 0},
		{"+35236450.6", "", 0},
		{"211-555-0187", "", 0},
		{"212-155-0187", "", 0},
		{"+0 123 456 7890", "", 0},
		{"+210 123 456 789 012 345 678", "", 0},
		{"x+12125550187", "", 0},
		{"2024-10-20T10:00:00+05:30", "", 0},
		{"192.168.100.12", "", 0},
	},
	usSSN: {
		{"536-90-4399", "536-90-4399", Likely},
		{"ssn 536-90-4399", "536-90-4399", VeryLikely},
		{"536 90 4399", "536 90 4399", Possible},
		{"536.90.4399", "536.90.4399", Possible},
		{"SSN: 536904399", "536904399", Likely},
		{`"social_security":"536904399"`, "536904399", Likely},
		{"(123-45-6789)", "123-45-6789", Likely},
		{"536904399", "", 0},
		{"000-90-4399", "", 0},
		{"666-90-4399", "", 0},
		{"900-90-4399", "", 0},
		{"536-00-4399", "", 0},
		{"536-90-0000", "", 0},
		{"078-05-1120", "", 0},
		{"1-536-90-4399", "", 0},
		{"536-90-4399-1", "", 0},
		{"111-11-1111", "", 0},
	},
	usITIN: {
		{"912-80-1234", "912-80-1234", Likely},
		{"912-65-1234", "912-65-1234", Likely},
		{"itin 912801234", "912801234", Likely},
		{"912 94 1234", "912 94 1234", Possible},
		{"912-66-1234", "", 0},
		{"912-93-1234", "", 0},
		{"812-80-1234", "", 0},
		{"912801234", "", 0},
	},
	usPassport: {
		{"passport 123456789", "123456789", Likely},
		{"Passport no: C12345678", "C12345678", Likely},
		{`"passport":"A00000001"`, "A00000001", Likely},
		{"US passport number is 987654321.", "987654321", Likely},
		{"123456789", "", 0},
		{"C12345678", "", 0},
		{"passport C1234567", "", 0},
		{"passport CC12345678", "", 0},
	},
	ukNHS: {
		{"NHS 943 476 5919", "943 476 5919", Likely},
		{"nhs number: 9434765919", "9434765919", Likely},
		{"NHS No 943-476-5919", "943-476-5919", Likely},
		{"national health 4010232137", "4010232137", Likely},
		{"9434765919", "", 0},
		{"NHS 943 476 5918", "", 0},
		{"943 476 5919", "", 0},
		{"NHS 94347659190", "", 0},
	},
	deTaxID: {
		{"Steuer-ID 86095742719", "86095742719", Likely},
		{"86 095 742 719", "86 095 742 719", Likely},
		{"IdNr: 47036892816", "47036892816", Likely},
		{"tax id 65929970489", "65929970489", Likely},
		{"86095742719", "", 0},
		{"Steuer-ID 86095742718", "", 0},
		{"Steuer-ID 06095742719", "", 0},
		{"Steuer-ID 11111111111", "", 0},
	},
	frNIR: {
		{"1 85 05 78 006 084 91", "1 85 05 78 006 084 91", VeryLikely},
		{"185057800608491", "185057800608491", Possible},
		{"nir: 185057800608491", "185057800608491", Likely},
		{"n° insee 1850578006084 91", "1850578006084 91", VeryLikely},
		{"185057800608436", "", 0},
		{"385057800608491", "", 0},
		{"185137800608491", "", 0},
		{"x185057800608491", "", 0},
	},
	canadaSIN: {
		{"SIN 046-454-286", "", 0},
		{"sin: 130 692 544", "130 692 544", Likely},
		{"130-692-544", "130-692-544", Possible},
		{"social insurance 130692544", "130692544", Likely},
		{"130692544", "", 0},
		{"130-692-545", "", 0},
		{"830-692-544", "", 0},
		{"130 692 544", "", 0},
	},
	brazilCPF: {
		{"529.982.247-25", "529.982.247-25", VeryLikely},
		{"cpf 52998224725", "52998224725", Likely},
		{"CPF: 111.444.777-35", "111.444.777-35", VeryLikely},
		{"cadastro 11144477735", "11144477735", Likely},
		{"529.982.247-26", "", 0},
		{"52998224725", "", 0},
		{"111.111.111-11", "", 0},
		{"1529.982.247-25", "", 0},
	},
	indiaAadhaar: {
		{"2341 2341 2346", "2341 2341 2346", Possible},
		{"aadhaar 234123412346", "234123412346", Likely},
		{"2341-2341-2346", "2341-2341-2346", Possible},
		{"Aadhar: 2341 2341 2346", "2341 2341 2346", Likely},
		{"2341 2341 2347", "", 0},
		{"9f41a2c0-2341-2341-2346-98928289ab12", "", 0},
		{"234123412346", "", 0},
		{"1341 2341 2346", "", 0},
		{"x2341 2341 2346", "", 0},
	},
	ipAddress: {
		{"10.1.2.3", "10.1.2.3", Possible},
		{"client 203.0.113.9:443", "203.0.113.9", Likely},
		{"2001:db8::8a2e:370:7334", "2001:db8::8a2e:370:7334", Likely},
		{"[2001:db8:0:0:0:0:0:1]:80", "2001:db8:0:0:0:0:0:1", Likely},
		{"remote_addr=fe80::1ff:fe23:4567:890a", "fe80::1ff:fe23:4567:890a", VeryLikely},
		{"ip: 8.8.8.8.", "8.8.8.8", Likely},
		{"::ffff:192.0.2.128", "::ffff:192.0.2.128", Likely},
		{"version 1.2.3.4", "", 0},
		{"1.2.3", "", 0},
		{"1.2.3.4.5", "", 0},
		{"256.1.1.1", "", 0},
		{"01.2.3.4", "", 0},
		{"12:30:45", "", 0},
		{"std::string", "", 0},
		{"dead::beef", "", 0},
		{"127.0.0.1", "", 0},
	},
	macAddress: {
		{"00:1A:2B:3C:4D:5E", "00:1A:2B:3C:4D:5E", Likely},
		{"00-1a-2b-3c-4d-5e", "00-1a-2b-3c-4d-5e", Likely},
		{"mac=aa:bb:cc:dd:ee:01;", "aa:bb:cc:dd:ee:01", Likely},
		{"[00:1A:2B:3C:4D:5E]", "00:1A:2B:3C:4D:5E", Likely},
		{"00:1A:2B:3C:4D", "", 0},
		{"00:1A:2B:3C:4D:5E:6F", "", 0},
		{"00:1A-2B:3C:4D:5E", "", 0},
		{"ff:ff:ff:ff:ff:ff", "", 0},
	},
	awsCredentials: {
		{"AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE", VeryLikely},
		{"ASIAY34FZKBOKMUTVV7A", "ASIAY34FZKBOKMUTVV7A", VeryLikely},
		{"aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", VeryLikely},
		{`"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"`, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", VeryLikely},
		{"AKIAIOSFODNN7EXAMPL", "", 0},
		{"AKIAIOSFODNN7EXAMPLEX", "", 0},
		{"xAKIAIOSFODNN7EXAMPLE", "", 0},
		{"AKIAAAAAAAAAAAAAAAAA", "", 0},
		{"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "", 0},
		{"secret_access_key: " + strings.Repeat("a", 40), "", 0},
	},
	"GCP_API_KEY": {
		{"AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIzaSyA1234567890abcdefghijklmnopqrstuv", VeryLikely},
		{"key=AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", VeryLikely},
		{`"AIzaSyA1234567890abcdefghijklmnopqrst_v"`, "AIzaSyA1234567890abcdefghijklmnopqrst_v", VeryLikely},
		{"https://x/?key=AIzaSyA1234567890abcdefghijklmnopqrstuv&a=b", "AIzaSyA1234567890abcdefghijklmnopqrstuv", VeryLikely},
		{"AIzaSyA1234567890abcdefghijklmnopqrstu", "", 0},
		{"AIzaSyA1234567890abcdefghijklmnopqrstuvw", "", 0},
		{"AIzaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "", 0},
		{"xAIzaSyA1234567890abcdefghijklmnopqrstuv", "", 0},
	},
	"GCP_CREDENTIALS": {
		{`"private_key_id": "0123456789abcdef0123456789abcdef01234567"`, "0123456789abcdef0123456789abcdef01234567", VeryLikely},
		{`"private_key_id":"0123456789abcdef0123456789abcdef01234567"`, "0123456789abcdef0123456789abcdef01234567", VeryLikely},
		{"ya29.a0AfH6SMBx7y8z9abcdefghij", "ya29.a0AfH6SMBx7y8z9abcdefghij", VeryLikely},
		{"GOCSPX-abcdefghijklmnopqrst12345678", "GOCSPX-abcdefghijklmnopqrst12345678", VeryLikely},
		{`"private_key_id": "0123456789abcdef"`, "", 0},
		{"ya29.short", "", 0},
		{"GOCSPX-short", "", 0},
		{`"private_key_id": ""`, "", 0},
	},
	"AZURE_AUTH_TOKEN": {
		{"AccountKey=" + strings.Repeat("Ab3d", 21) + "Eg==;", strings.Repeat("Ab3d", 21) + "Eg==", VeryLikely},
		{"SharedAccessKey=" + strings.Repeat("Ab3d", 10) + "Efg=", strings.Repeat("Ab3d", 10) + "Efg=", VeryLikely},
		{"abc8Q~0123456789abcdefghijklmnopqrstu", "abc8Q~0123456789abcdefghijklmnopqrstu", VeryLikely},
		{`secret: "a.b7Q~0123456789abcdefghijklmnopqrstuv"`, "a.b7Q~0123456789abcdefghijklmnopqrstuv", VeryLikely},
		{"AccountKey=short==", "", 0},
		{"SharedAccessKey=" + strings.Repeat("Ab3d", 11), "", 0},
		{"abc8Q~tooshort", "", 0},
		{"xyzabc8Q~0123456789abcdefghijklmnopqrstu", "", 0},
	},
	githubToken: {
		{"ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", Likely},
		{"gho_16C7e42F292c6912E7710c838347Ae178B4a", "gho_16C7e42F292c6912E7710c838347Ae178B4a", Likely},
		{"https://x:ghs_16C7e42F292c6912E7710c838347Ae178B4a@github.com", "ghs_16C7e42F292c6912E7710c838347Ae178B4a", Likely},
		{"github_pat_" + strings.Repeat("aB3_x", 16) + "zz", "github_pat_" + strings.Repeat("aB3_x", 16) + "zz", VeryLikely},
		{"ghp_" + validGitHub, "ghp_" + validGitHub, VeryLikely},
		{"ghp_16C7e42F292c6912E7710c838347Ae178B4", "", 0},
		{"xghp_16C7e42F292c6912E7710c838347Ae178B4a", "", 0},
		{"ghx_16C7e42F292c6912E7710c838347Ae178B4a", "", 0},
		{"github_pat_short", "", 0},
	},
	"SLACK_TOKEN": {
		{"xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx", "xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx", VeryLikely},
		{"xoxp-1234567890-1234567890-abcdef", "xoxp-1234567890-1234567890-abcdef", VeryLikely},
		{"xapp-1-A0123456789-1234567890123-abcdef0123456789abcdef", "xapp-1-A0123456789-1234567890123-abcdef0123456789abcdef", VeryLikely},
		{"https://hooks.slack.com/services/T00000000/B00000000/AbCdEfGhIjKlMnOpQrStUvWx", "hooks.slack.com/services/T00000000/B00000000/AbCdEfGhIjKlMnOpQrStUvWx", VeryLikely},
		{"xoxb-short", "", 0},
		{"xoxz-123456789012-1234567890123", "", 0},
		{"axoxb-123456789012-1234567890123-Ab", "", 0},
		{"xoxb-1111111111111111111111", "", 0},
	},
	"STRIPE_API_KEY": {
		{"sk_live_4eC39HqLyjWDarjtT1zdp7dc", "sk_live_4eC39HqLyjWDarjtT1zdp7dc", VeryLikely},
		{"sk_test_4eC39HqLyjWDarjtT1zdp7dc", "sk_test_4eC39HqLyjWDarjtT1zdp7dc", Likely},
		{"rk_live_4eC39HqLyjWDarjtT1zdp7dc", "rk_live_4eC39HqLyjWDarjtT1zdp7dc", VeryLikely},
		{"whsec_4eC39HqLyjWDarjtT1zdp7dc4eC39Hqs", "whsec_4eC39HqLyjWDarjtT1zdp7dc4eC39Hqs", VeryLikely},
		{"sk_live_short", "", 0},
		{"pk_live_4eC39HqLyjWDarjtT1zdp7dc", "", 0},
		{"risk_live_4eC39HqLyjWDarjtT1zdp7dc", "", 0},
		{"sk_live_aaaaaaaaaaaaaaaaaaaaaaaa", "", 0},
	},
	privateKey: {
		{pemKey("RSA PRIVATE KEY", "\n"), pemKey("RSA PRIVATE KEY", "\n"), VeryLikely},
		{pemKey("PRIVATE KEY", "\r\n"), pemKey("PRIVATE KEY", "\r\n"), VeryLikely},
		{`"` + pemKey("EC PRIVATE KEY", `\n`) + `"`, pemKey("EC PRIVATE KEY", `\n`), VeryLikely},
		{pemKey("OPENSSH PRIVATE KEY", "\n") + "\nmore", pemKey("OPENSSH PRIVATE KEY", "\n"), VeryLikely},
		{pemKey("ENCRYPTED PRIVATE KEY", " "), pemKey("ENCRYPTED PRIVATE KEY", " "), VeryLikely},
		{strings.TrimSuffix(pemKey("PRIVATE KEY", "\n"), "\n-----END PRIVATE KEY-----") + "\n\"}", strings.TrimSuffix(pemKey("PRIVATE KEY", "\n"), "\n-----END PRIVATE KEY-----"), Likely},
		{pemKey("PUBLIC KEY", "\n"), "", 0},
		{pemKey("CERTIFICATE", "\n"), "", 0},
		{"-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----", "", 0},
		{"-----BEGIN PRIVATE KEY----\n" + strings.Repeat("QUJD", 20), "", 0},
	},
	jsonWebToken: {
		{jwtHead + "." + jwtBody + ".c2ln", jwtHead + "." + jwtBody + ".c2ln", VeryLikely},
		{"Bearer " + jwtHead + "." + jwtBody + ".c2ln,", jwtHead + "." + jwtBody + ".c2ln", VeryLikely},
		{"eyJhbGciOiJub25lIn0." + jwtBody + ".", "eyJhbGciOiJub25lIn0." + jwtBody + ".", VeryLikely},
		{"?t=" + jwtHead + "." + jwtBody + ".c2ln&x", jwtHead + "." + jwtBody + ".c2ln", VeryLikely},
		{jwtHead + "." + jwtBody, "", 0},
		{jwtHead + "..sig", "", 0},
		{"eyJmb28iOiJiYXIifQ." + jwtBody + ".c2ln", "", 0},
		{"eyJub3QganNvbg." + jwtBody + ".c2ln", "", 0},
		{"x" + jwtHead + "." + jwtBody + ".c2ln", "", 0},
	},
	basicAuth: {
		{"Authorization: Basic " + b64("user:pass"), b64("user:pass"), VeryLikely},
		{"basic " + b64("u:p4ss"), b64("u:p4ss"), Likely},
		{`"Basic ` + b64("admin:hunter2") + `"`, b64("admin:hunter2"), Likely},
		{"BASIC " + b64("a:bcdef"), b64("a:bcdef"), Likely},
		{"Basic training", "", 0},
		{"basic " + b64("nocolon"), "", 0},
		{"basic " + b64("\x01:\x02aa"), "", 0},
		{"basic x", "", 0},
	},
	genericSecret: {
		{`password = "Xk29fLq0Zr81mWv"`, "Xk29fLq0Zr81mWv", Likely},
		{"api_key: 9f8e7d6c5b4a39281706f5e4", "9f8e7d6c5b4a39281706f5e4", Likely},
		{`{"client_secret":"aB3dE5fG7hJ9kL1m"}`, "aB3dE5fG7hJ9kL1m", VeryLikely},
		{"SECRET_TOKEN=zx81QwErTy56UiOp", "zx81QwErTy56UiOp", VeryLikely},
		{"Bearer aB3dE5fG7hJ9kL1m", "aB3dE5fG7hJ9kL1m", VeryLikely},
		{"password: changeme", "", 0},
		{"secret: oauth2.Token", "", 0},
		{"password = os.Getenv(name)", "", 0},
		{"secret: ${SECRET_123456}", "", 0},
		{"the password is long", "", 0},
		{"secret = aaaaaaaaaaaa1", "", 0},
		{"password field: required", "", 0},
	},
}

var validGitHub = func() string {
	const body = "AbCdEfGhIjKlMnOpQrStUvWxYz0123"
	return body + base62(crc32.ChecksumIEEE([]byte(body)))
}()

func pemKey(label, nl string) string {
	body := strings.Repeat("MIIEowIBAAKCAQEAtVKUtcx/n9rt5afY+2WFNvU6PlFMggCatsZ3l4RjKxH0jgdL"+nl, 3)
	return "-----BEGIN " + label + "-----" + nl + body + "-----END " + label + "-----"
}

func TestDetectors(t *testing.T) {
	total := 0
	for typ, cases := range detectorCases {
		e, err := New(Options{Types: []string{typ}})
		if err != nil {
			t.Fatal(err)
		}
		pos, neg := 0, 0
		for _, tt := range cases {
			total++
			var got []string
			for _, text := range []string{tt.text, " " + tt.text + " ", "\n" + tt.text + "\n"} {
				got = got[:0]
				scan(e, text, nil, func(f Finding, m []byte) Edit {
					if f.Likelihood >= max(tt.low, Possible) {
						got = append(got, string(m))
					}
					return Edit{}
				})
				if want := tt.match; want == "" && len(got) > 0 || want != "" && (len(got) != 1 || got[0] != want) {
					t.Errorf("%s in %q: found %q at %v or above, want %q", typ, text, got, max(tt.low, Possible), want)
				}
			}
			if tt.match == "" {
				neg++
			} else {
				pos++
			}
		}
		if pos < 3 || neg < 3 || pos+neg < 8 {
			t.Errorf("%s: %d positive and %d negative cases: want at least 8 in all, 3 of each", typ, pos, neg)
		}
	}
	if len(detectorCases) < 20 || total < 250 {
		t.Errorf("%d detectors with %d cases: want at least 20 with 250", len(detectorCases), total)
	}
}

func TestCustomPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          []string
	}{
		{`EMP-\d{4,8}`, "EMP-1234 EMP-123 EMP-123456789", []string{"EMP-1234", "EMP-12345678"}},
		{`\bEMP-\d{4}\b`, "xEMP-1234 EMP-12345 EMP-1234", []string{"EMP-1234"}},
		{`(?i)konto\s*:\s*\d+`, "KONTO :  55 Konto:1", []string{"KONTO :  55", "Konto:1"}},
		{`[A-Z]{2}\d{6}[A-D]`, "AB123456C ab123456c AB123456E", []string{"AB123456C"}},
		{`a|ab|abc`, "abcd", []string{"abc"}},
		{`(?:foo|bar)+`, "xfoobarfoo", []string{"foobarfoo"}},
		{`naïve \w+`, "a naïve approach", []string{"naïve approach"}},
		{`[äöü]x+`, "äxx öx ax", []string{"äxx", "öx"}},
		{`(?m)^id=\d+$`, "id=1\n id=2\nid=3x\nid=4", []string{"id=1", "id=4"}},
		{`x{300}`, strings.Repeat("x", 300), nil}, // longer than the bound
		{`y{1,300}`, strings.Repeat("y", 300), []string{strings.Repeat("y", 256), strings.Repeat("y", 44)}},
		{`[^a]b`, "ab cb éb", nil},
	} {
		e, err := New(Options{Regexes: []Regex{{Type: "X", Pattern: tt.pattern}}})
		if err != nil {
			if tt.pattern == `[^a]b` {
				continue // begins with almost anything: refused
			}
			t.Fatal(err)
		}
		var got []string
		scan(e, tt.text, nil, func(_ Finding, m []byte) Edit { got = append(got, string(m)); return Edit{} })
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s in %.40q: %q, want %q", tt.pattern, tt.text, got, tt.want)
		}
	}
	for _, bad := range []string{`(`, `a*`, `.*x`, `(?:)`, `^`, `a{1001}`, strings.Repeat("a", 3000), `(a{100}){100}`} {
		if _, err := New(Options{Regexes: []Regex{{Type: "X", Pattern: bad}}}); err == nil {
			t.Errorf("%.20q accepted", bad)
		}
	}
}

func TestWords(t *testing.T) {
	e, err := New(Options{Words: []Words{{Type: "W", List: []string{"Bluebird", "x-1", "über"}}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	scan(e, "BLUEBIRD bluebirds aBluebird (bluebird) _bluebird_ X-1 x-12 über", nil, func(_ Finding, m []byte) Edit { got = append(got, string(m)); return Edit{} })
	if want := []string{"BLUEBIRD", "bluebird", "X-1", "über"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("codename%04d", i))
	}
	if e, err = New(Options{Words: []Words{{Type: "W", List: many}}}); err != nil {
		t.Fatal(err)
	}
	if o := scan(e, "codename0999", nil, nil); len(o.findings) != 1 {
		t.Errorf("%v", o.findings)
	}
	for _, bad := range []Words{{Type: "W"}, {Type: "W", List: []string{"a"}}, {Type: "W", List: []string{strings.Repeat("a", 300)}}, {List: []string{"abc"}}} {
		if _, err := New(Options{Words: []Words{bad}}); err == nil {
			t.Errorf("%+v accepted", bad)
		}
	}
}
