"""A customer's rights centre at the node: know, choose, see, correct, delete, withdraw; in Chinese and English.

`codes` checks who somebody is, `delivery` brings the code, `sessions` remembers who has signed in, `texts` is what
pages say, and `app` is the web application. All that is done to data is `clients.rights`.
"""
