package netio

// TestCertificate is for the tests that see the package from outside.
var TestCertificate = testCert
